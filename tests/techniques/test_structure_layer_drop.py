"""Dropping layers: which stay, what they are called afterwards, who refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AlbertConfig

from tasks import model_parts, stream_importance, technique
from tasks.errors import TechniqueError
from tasks.structure import layer_drop
from tests import tiny
from tests.techniques.contract import Contract


def _scores(bundle, count=512):
    return stream_importance.score(
        bundle.copy(), tiny.examples(count=64).sample(count, 7), torch.device("cpu"), "first_order"
    ).layers


def _prove(before, after, config):
    kept = layer_drop.kept_layers(config, 3, lambda: _scores(before, config.importance_examples))
    old, new = model_parts.layers(before.model), model_parts.layers(after.model)
    assert len(new) == len(kept) == after.model.config.num_hidden_layers < len(old)
    for place, index in enumerate(kept):
        assert (new[place].ffn_input.weight == old[index].ffn_input.weight).all()
    assert after.num_parameters() < before.num_parameters()


CONTRACT = Contract(
    good=(
        {"keep": 2},
        {"keep": 1, "strategy": "top"},
        {"keep": 2, "strategy": "bottom"},
        {"keep": [1]},
        {"keep": 2, "strategy": "importance", "importance_examples": 16},
    ),
    bad=(
        ({}, "Field required"),
        ({"keep": 0}, "greater than or equal to 1"),
        ({"keep": []}, "ascending order"),
        ({"keep": [2, 0]}, "ascending order"),
        ({"keep": [1, 1]}, "ascending order"),
        ({"keep": [-1]}, "greater than or equal to 0"),
        ({"keep": 2, "strategy": "middle"}, "'even', 'top', 'bottom' or 'importance'"),
        ({"keep": [0, 1], "strategy": "top"}, "goes with a number of layers"),
        ({"keep": [0, 1], "strategy": "importance"}, "goes with a number of layers"),
        ({"keep": 1, "importance_examples": 0}, "greater than or equal to 1"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


def test_which_layers_stay():
    def kept(**settings):
        return layer_drop.kept_layers(layer_drop.Config(**settings), 6)

    assert kept(keep=3) == [0, 2, 5]
    assert kept(keep=2) == [0, 5]
    assert kept(keep=1) == [0]
    assert kept(keep=4, strategy="top") == [2, 3, 4, 5]
    assert kept(keep=4, strategy="bottom") == [0, 1, 2, 3]
    assert kept(keep=[1, 4]) == [1, 4]


@given(
    sizes=st.integers(2, 48).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n))),
    strategy=st.sampled_from(["even", "top", "bottom"]),
)
def test_as_many_layers_stay_as_asked_and_each_once(sizes, strategy):
    count, total = sizes
    kept = layer_drop.kept_layers(layer_drop.Config(keep=count, strategy=strategy), total)
    assert len(kept) == count
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < total


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"keep": 3}, "has 3 layers"),
        ({"keep": 9}, "has 3 layers"),
        ({"keep": [0, 1, 2]}, "has 3 layers"),
        ({"keep": [0, 3]}, "no layer 3: its layers are 0 to 2"),
    ],
)
def test_what_the_model_cannot_do_is_refused(settings, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        layer_drop.apply(tiny.tiny_bert(), layer_drop.Config(**settings), tiny.context(tmp_path))


def test_shared_layers_are_refused(tmp_path):
    albert = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3,
    )  # fmt: skip
    with pytest.raises(TechniqueError, match="share one set of weights"):
        layer_drop.apply(tiny.bundle_of(albert), layer_drop.Config(keep=1), tiny.context(tmp_path))


def test_pruned_matrices_are_known_by_their_new_names(tmp_path):
    bundle = tiny.tiny_gpt2()
    bundle.sparse = (
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.1.mlp.c_fc.weight",
        "transformer.h.2.attn.c_attn.weight",
        "score.weight",
    )
    after = layer_drop.apply(bundle, layer_drop.Config(keep=[0, 2]), tiny.context(tmp_path))
    assert after.sparse == (
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.1.attn.c_attn.weight",
        "score.weight",
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_that_adds_nothing_is_the_first_to_go(place, tmp_path):
    bundle = tiny.tiny_gpt2()
    useless = model_parts.layers(bundle.model)[place]
    with torch.no_grad():
        for writer in (useless.attention_output, useless.ffn_output):
            writer.weight.zero_()
            writer.bias.zero_()
    config = layer_drop.Config(keep=2, strategy="importance", importance_examples=16)
    after = layer_drop.apply(bundle, config, tiny.context(tmp_path))
    texts = tiny.examples(16, seed=4).texts
    assert np.allclose(tiny.answers(after, texts), tiny.answers(bundle, texts), atol=1e-5)


def test_importance_needs_texts_and_reads_the_data(tmp_path):
    config = layer_drop.Config(keep=2, strategy="importance")
    context = replace(tiny.context(tmp_path), train=tiny.examples(0))
    with pytest.raises(TechniqueError, match="no training texts to measure on"):
        layer_drop.apply(tiny.tiny_bert(), config, context)
    assert technique.reads_data(layer_drop, config)
    for strategy in ("even", "top", "bottom"):
        other = layer_drop.Config(keep=2, strategy=strategy)
        assert not technique.reads_data(layer_drop, other)
        layer_drop.apply(tiny.tiny_bert(), other, context)
