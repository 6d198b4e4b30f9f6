"""One-shot structured pruning: what it keeps, that it mends, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig

from tasks import model_parts
from tasks.errors import TechniqueError
from tasks.importance import gated
from tasks.mask_search import Kept
from tasks.pruning import one_shot
from tasks.runtime import layer_latency
from tasks.runtime.export import export
from tasks.runtime.layer_latency import LayerLatency
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tests import tiny
from tests.techniques.contract import LONG, Contract, divergence

TEXTS = tiny.examples(16, seed=4).texts


def _macs(bundle, length):
    """Multiplications of the layers for one token, counted by hand."""
    total = 0.0
    for part in model_parts.layers(bundle.model):
        for module in (*part.projections, part.attention_output, part.ffn_input, part.ffn_output):
            total += module.weight.numel()
        total += 2 * length * part.num_heads * part.head_size  # with all keys, and all values
    return total


def _length(count):
    texts = tiny.examples(64).sample(count, 7).texts
    lengths = np.array([len(tiny.tokenizer()(t)["input_ids"]) for t in texts])
    return float((lengths**2).sum() / lengths.sum())


def _prove(before, after, config):
    length = _length(config.examples)
    share = _macs(after, length) / _macs(before, length)
    assert share <= config.keep
    # no more is cut than must be: the next head, or group of neurons, would not have fitted
    assert share > config.keep - 0.1
    assert after.num_parameters() < before.num_parameters()
    parts = model_parts.layers(after.model)
    assert all(p.num_heads >= 1 and p.num_neurons % config.multiple == 0 for p in parts)


CONTRACT = Contract(
    good=(
        {"keep": 0.6, "multiple": 4},
        {"keep": 0.4, "multiple": 1, "refit": "weights", "examples": 32, "damping": 0.1},
        {"keep": 0.8, "multiple": 8, "refit": "none", "rearrange": False},
        {"keep": 0.5, "multiple": 2, "shift_bias": False, "refit_examples": 16},
    ),
    bad=(
        ({"keep": 0}, "greater than 0"),
        ({"keep": 1}, "less than 1"),
        ({"constraint": "energy"}, "'flops', 'latency' or 'size'"),
        ({"multiple": 0}, "greater than or equal to 1"),
        ({"examples": 0}, "greater than or equal to 1"),
        ({"examples": 10**6}, "less than or equal to 16384"),
        ({"refit": "all"}, "'none', 'scale' or 'weights'"),
        ({"damping": 0}, "greater than 0"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "roberta", "electra"])
def test_without_mending_the_cut_model_is_the_masked_one(kind, tmp_path, monkeypatch):
    chosen: list[Kept] = []
    real = Kept.cut
    monkeypatch.setattr(Kept, "cut", lambda kept, parts: chosen.append(kept) or real(kept, parts))
    bundle = tiny.tiny(kind)
    config = one_shot.Config(keep=0.5, multiple=2, refit="none")
    after = one_shot.apply(bundle, config, tiny.context(tmp_path))
    parts = model_parts.layers(bundle.model)
    gates = []
    for kept, size in ((chosen[0].heads, 4), (chosen[0].neurons, 32)):
        gates.append([torch.zeros(1, size) for _ in parts])
        for gate, stays in zip(gates[-1], kept, strict=True):
            gate[0, stays] = 1
    with gated(parts, *gates):
        masked = tiny.answers(bundle, TEXTS)
    assert np.abs(tiny.answers(after, TEXTS) - masked).max() < 1e-5
    widths = [(p.num_heads, p.num_neurons) for p in model_parts.layers(after.model)]
    assert len(set(widths)) > 1  # unequal, and exported all the same
    facts = export(after, tmp_path / "export")  # compares with PyTorch, to 1e-4
    if kind != "gpt2":
        assert facts.fused["Attention"] == 3


def test_mending_brings_the_answers_of_trained_models_back_on_the_whole(tmp_path):
    texts = tiny.examples(200, seed=4).texts
    errors = {"none": 0.0, "scale": 0.0, "weights": 0.0}
    for kind in ("bert", "gpt2", "distilbert"):
        bundle, context = tiny.tiny(kind), tiny.context(tmp_path)
        fit(
            bundle, context.train, context.validation, TrainingConfig(**LONG), seed=7,
            device=context.device, scratch=tmp_path, progress=context.progress,
        )  # fmt: skip
        expected = tiny.answers(bundle, texts)
        for refit in errors:
            config = one_shot.Config(keep=0.4, multiple=1, refit=refit)
            after = one_shot.apply(bundle, config, context)
            errors[refit] += divergence(expected, tiny.answers(after, texts)).mean()
    assert errors["scale"] < errors["none"] * 0.9
    assert errors["weights"] < errors["none"] * 0.9


def test_neurons_of_mpnet_are_cut_and_its_heads_are_not(tmp_path):
    config = one_shot.Config(keep=0.7, multiple=2)
    after = one_shot.apply(tiny.tiny("mpnet"), config, tiny.context(tmp_path))
    parts = model_parts.layers(after.model)
    assert [p.num_heads for p in parts] == [4, 4, 4]
    assert sum(p.num_neurons for p in parts) < 96


def test_pruned_zeros_stay_zero(tmp_path):
    bundle = tiny.tiny_bert()
    bundle.sparse = ("bert.encoder.layer.0.output.dense.weight",)
    weight = bundle.model.get_parameter(bundle.sparse[0])
    with torch.no_grad():
        weight[:8] = 0
    for refit in ("scale", "weights"):
        config = one_shot.Config(keep=0.6, multiple=2, refit=refit)
        after = one_shot.apply(bundle, config, tiny.context(tmp_path))
        assert after.sparse == bundle.sparse
        mended = after.model.get_parameter(after.sparse[0])
        assert not mended[:8].any()
        assert mended[8:].all()


def test_a_measured_budget_is_kept_to_and_measured_once(tmp_path, monkeypatch):
    calls = []

    def measure(bundle, length, threads, progress, plan):
        calls.append(length)
        # two heads and 8 neurons are free; a further head costs 0.2, eight further neurons 0.1
        return LayerLatency(
            whole=1.3,
            heads={1: 0.9, 2: 0.9, 3: 1.1, 4: 1.3},
            neurons={8: 1.0, 16: 1.1, 24: 1.2, 32: 1.3},
        )

    monkeypatch.setattr(layer_latency, "measure", measure)
    context = tiny.context(tmp_path)
    config = one_shot.Config(keep=0.7, constraint="latency", multiple=4, refit="none")
    after = one_shot.apply(tiny.tiny_bert(), config, context)
    parts = model_parts.layers(after.model)
    cost = sum(0.6 + 0.2 * max(0, p.num_heads - 2) + max(0, p.num_neurons - 8) / 80 for p in parts)
    assert 0.65 * 3 * 1.3 < cost <= 0.7 * 3 * 1.3 + 1e-9
    assert all(p.num_heads >= 2 and p.num_neurons >= 8 for p in parts)
    again = one_shot.apply(tiny.tiny_bert(), config, context)  # as if it had been killed
    assert len(calls) == 1
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))


def test_a_layer_that_gets_no_faster_is_told(tmp_path, monkeypatch):
    level = LayerLatency(1.0, {2: 1.1, 4: 1.0}, {16: 1.1, 32: 1.0})
    monkeypatch.setattr(layer_latency, "measure", lambda *_: level)
    config = one_shot.Config(constraint="latency", multiple=4)
    with pytest.raises(TechniqueError, match="no faster: set `constraint: flops`"):
        one_shot.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))


def _albert():
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bundle", "settings", "texts", "reason"),
    [
        (tiny.tiny_bert, {"keep": 0.1, "multiple": 1}, 64, r"`keep: 0.1` cannot be met.* is \d\d%"),
        (tiny.tiny_bert, {"keep": 0.5}, 64, "lower `multiple`"),  # 32 neurons are one group
        (tiny.tiny_bert, {"multiple": 4}, 0, "no training texts to measure on"),
        (_albert, {}, 64, "share one set of weights"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    bundle, settings, texts, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr(one_shot, "example_gradients", lambda *_: pytest.fail("work was done"))
    context = replace(tiny.context(tmp_path), train=tiny.examples(texts))
    with pytest.raises(TechniqueError, match=reason):
        one_shot.apply(bundle(), one_shot.Config(**settings), context)
