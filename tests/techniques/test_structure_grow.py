"""Growing: the same answers from a larger model, which then learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, GPT2Config, RobertaConfig

from tasks import bundle as bundles
from tasks import model_parts
from tasks.errors import TechniqueError
from tasks.runtime.export import export
from tasks.structure import grow, weight_sharing
from tasks.structure.grow import Config, deepen, widen_attention, widen_ffn
from tests import tiny
from tests.runtime.test_export import centred, logits, quantized
from tests.techniques.contract import LONG, SHORT, Contract, accuracy

TEXTS = tiny.examples(16, seed=3).texts
KINDS = ("bert", "gpt2", "distilbert", "electra", "roberta", "mpnet")


def _widths(bundle):
    parts = model_parts.layers(bundle.model)
    return [p.num_heads for p in parts], [p.num_neurons for p in parts]


def _prove(before, after, config):
    heads, neurons = _widths(after)
    number = config.layers or 3
    assert heads == [config.heads or 4] * number
    assert neurons == [config.ffn or 32] * number
    assert after.model.config.num_hidden_layers == number
    assert after.num_parameters() > before.num_parameters()


CONTRACT = Contract(
    good=(
        {"ffn": 40, "training": SHORT},
        {"heads": 6, "training": SHORT},
        {"layers": 4, "training": SHORT},
        {"ffn": 70, "heads": 5, "layers": 5, "teacher": "baseline", "training": SHORT},
    ),
    bad=(
        ({}, "needs `ffn`, `heads` or `layers`"),
        ({"ffn": 0}, "greater than or equal to 1"),
        ({"heads": -1}, "greater than or equal to 1"),
        ({"layers": 0}, "greater than or equal to 1"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


def grown(bundle, *, ffn=None, heads=None, layers=None, seed=0):
    """The bundle grown, not trained."""
    made, random = bundle.copy(), np.random.default_rng(seed)
    for part in model_parts.layers(made.model):
        if ffn is not None:
            widen_ffn(part, ffn, random)
        if heads is not None:
            widen_attention(part, heads, random)
    if layers is not None:
        deepen(made, layers)
    return made


def press(bundle, folder, **settings):
    config = Config(**{"training": SHORT, **settings})
    return grow.apply(bundle, config, tiny.context(folder))


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    ffn=st.integers(32, 120),
    heads=st.integers(4, 14),
    layers=st.integers(4, 9) | st.none(),
    seed=st.integers(0, 99),
)
def test_growing_changes_no_answer(kind, ffn, heads, layers, seed):
    before = tiny.tiny(kind, seed)
    after = grown(
        before, ffn=ffn, heads=None if kind == "mpnet" else heads, layers=layers, seed=seed
    )
    assert np.abs(tiny.answers(after, TEXTS) - tiny.answers(before, TEXTS)).max() < 1e-5
    assert _widths(after)[1] == [ffn] * (layers or 3)


def test_copies_share_what_stands_behind_them_unequally():
    bundle = tiny.tiny_bert()
    old = model_parts.layers(bundle.model)[0]
    new = model_parts.layers(grown(bundle, ffn=64).model)[0]
    whole, parts = old.ffn_output.weight, new.ffn_output.weight
    for neuron in range(32):
        same = (new.ffn_input.weight == old.ffn_input.weight[neuron]).all(dim=1)
        assert same.sum() == 2
        torch.testing.assert_close(parts[:, same].sum(dim=1), whole[:, neuron])
        one, other = parts[:, same].T
        assert (one - other).abs().max() > 1e-4  # so that the two learn differently


def test_layers_are_unequal_and_only_the_narrow_ones_grow(tmp_path):
    bundle = tiny.tiny_bert()
    model_parts.layers(bundle.model)[1].keep_neurons(range(8))
    model_parts.layers(bundle.model)[2].keep_heads([1])
    after = press(bundle, tmp_path, ffn=24, heads=3)
    assert _widths(after) == ([4, 4, 3], [32, 24, 32])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "roberta", "mpnet"])
def test_a_grown_model_reloads_and_its_export_answers_as_pytorch(kind, tmp_path):
    heads = None if kind == "mpnet" else 6
    after = press(tiny.tiny(kind), tmp_path, ffn=40, heads=heads, layers=4)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    assert _widths(again) == _widths(after)
    facts = export(after, tmp_path / "export")
    expected = centred(tiny.answers(after, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    if kind not in ("gpt2", "mpnet"):
        assert facts.fused["Attention"] == 4


def test_int8_reaches_all_that_is_new(tmp_path):
    facts = export(quantized(grown(tiny.tiny_bert(), ffn=40, layers=4)), tmp_path / "export")
    assert (facts.operators["QAttention"], facts.operators["MatMulInteger"]) == (4, 4 * 3 + 2)


def test_new_layers_are_spread_with_the_last_at_the_end():
    bundle = tiny.tiny_bert()
    marks = [part.ffn_input.weight for part in model_parts.layers(bundle.model)]
    after = grown(bundle, layers=5)
    parts = model_parts.layers(after.model)
    copied = [
        next(i for i, mark in enumerate(marks) if torch.equal(mark, part.ffn_input.weight))
        for part in parts
    ]
    assert copied == [0, 1, 1, 2, 2]
    fresh = [bool((part.ffn_output.weight == 0).all()) for part in parts]
    assert fresh == [False, False, True, False, True]


def test_pruned_matrices_keep_their_zeros_under_their_new_names(tmp_path):
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.{}.output.dense.weight"
    for layer in (1, 2):
        bundle.model.get_parameter(name.format(layer)).data[:, ::2] = 0
    bundle.sparse = (name.format(1), name.format(2), "classifier.weight")
    after = press(bundle, tmp_path, ffn=48, layers=5)
    assert after.sparse == (name.format(1), name.format(3), "classifier.weight")
    for layer, old in ((1, 1), (3, 2)):
        weight = after.model.get_parameter(name.format(layer))
        gone = bundle.model.get_parameter(name.format(old)) == 0
        assert (weight[:, :32][gone] == 0).all()
    assert (after.model.get_parameter(name.format(2)) != 0).any()  # a new layer learns freely


def test_a_scale_that_depends_on_the_place_goes_with_the_layer(tmp_path):
    config = GPT2Config(
        vocab_size=32, n_positions=32, n_embd=16, n_layer=3, n_head=4,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    before = tiny.bundle_of(config)
    after = grown(before, layers=6)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    assert np.abs(tiny.answers(again, TEXTS) - tiny.answers(before, TEXTS)).max() < 1e-5


def test_all_that_grew_learns(tmp_path):
    before = tiny.tiny_bert()
    after = press(before, tmp_path, ffn=48, heads=5, layers=4, training=LONG)
    start = grown(before, ffn=48, heads=5, layers=4, seed=7)
    assert accuracy(start) < 0.6
    assert accuracy(after) > 0.8
    old, new = dict(start.model.named_parameters()), dict(after.model.named_parameters())
    assert old.keys() == new.keys()
    assert all((old[name] != new[name]).any() for name in old)


def test_norms_that_add_much_to_the_variance_are_found_out(tmp_path):
    config = RobertaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=32, layer_norm_eps=0.1,
    )  # fmt: skip
    bundle = tiny.bundle_of(config)
    with pytest.raises(TechniqueError, match=r"would change a logit by 0\.\d+"):
        press(bundle, tmp_path, layers=3)
    assert _widths(press(bundle, tmp_path, ffn=40))[1] == [40, 40]


def _shared(folder):
    return weight_sharing.apply(
        tiny.tiny_bert(), weight_sharing.Config(training=SHORT), tiny.context(folder)
    )


@pytest.mark.parametrize(
    ("bundle", "settings", "reason"),
    [
        (tiny.tiny_bert, {"ffn": 32}, "`ffn: 32` is not more than the 32"),
        (tiny.tiny_bert, {"heads": 3}, "`heads: 3` is not more than the 4"),
        (tiny.tiny_bert, {"layers": 3}, "`layers: 3` is not more than the 3"),
        (lambda: tiny.tiny("mpnet"), {"heads": 8}, "heads cannot be added to a model of type"),
        (
            lambda: tiny.bundle_of(
                AlbertConfig(
                    vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
                    intermediate_size=32, num_hidden_layers=3,
                )
            ),
            {"layers": 4},
            "cannot be cut, grown or tied .its layers share one set of weights",
        ),
        (
            lambda: replace(tiny.tiny_bert(), labels=("no", "yes")),
            {"ffn": 40, "teacher": "baseline"},
            "knows the labels negative, positive, not no, yes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_training(bundle, settings, reason, tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher())
    with pytest.raises(TechniqueError, match=reason):
        grow.apply(bundle(), Config(**settings), context)
    assert not list(tmp_path.iterdir())


def test_a_model_that_shares_weights_is_refused(tmp_path):
    with pytest.raises(TechniqueError, match="are one matrix"):
        press(_shared(tmp_path), tmp_path, ffn=64)
