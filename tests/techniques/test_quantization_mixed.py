"""Mixed precision: bits by measured loss, a budget held in the bytes that are stored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks import bundle as bundles
from tasks import packed
from tasks.errors import TechniqueError
from tasks.quantization import dynamic, mixed
from tasks.runtime import product_latency
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import Contract
from tests.techniques.test_quantization_binary import TEXTS, body

ANY = {"group": 16, "sensitivity_examples": 8, "calibration_examples": 16}


def _stored(bundle, names):
    total = 0
    for name in names:
        module = bundle.model.get_submodule(name)
        if isinstance(module, packed.Packed):
            total += module.packed.nbytes + module.scale.nbytes
            total += 0 if module.zero is None else module.zero.nbytes
        else:
            total += module.weight.nbytes
    return total


def _chosen(bundle, config):
    tables = [n for n, m in bundle.model.named_modules() if isinstance(m, torch.nn.Embedding)]
    return [*body(bundle), *(tables if config.embeddings else [])]


def _prove(before, after, config):
    names = _chosen(before, config)
    share = _stored(after, names) / _stored(before, names)
    assert share <= config.keep
    found = packed.found(after.model)
    assert found
    assert {part.bits for part in found.values()} <= set(config.bits)
    assert "matrices: " in after.notes[mixed.NOTE]


CONTRACT = Contract(
    good=(
        {**ANY, "keep": 0.35},
        {**ANY, "keep": 0.6, "embeddings": False, "symmetric": True},
        {**ANY, "keep": 0.5, "bits": [8], "method": "nearest"},
    ),
    bad=(
        ({"keep": 1}, "less than 1"),
        ({"bits": []}, "at least 1 item"),
        ({"bits": [3]}, "4 or 8"),
        ({"constraint": "flops"}, "'size' or 'latency'"),
        ({"sensitivity_examples": 0}, "greater than or equal to 1"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_export_answers_as_the_model_of_several_widths(kind, tmp_path):
    config = mixed.Config(**ANY, keep=0.45)
    after = mixed.apply(tiny.tiny(kind), config, tiny.context(tmp_path))
    bits = {part.bits for part in packed.found(after.model).values()}
    assert len(bits) == 2 or len(packed.found(after.model)) < len(_chosen(tiny.tiny(kind), config))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    export(again, tmp_path / "export")
    expected = torch.softmax(torch.from_numpy(tiny.answers(after, TEXTS)), 1).numpy()
    found = Session(tmp_path / "export", 1).probabilities(TEXTS)
    assert np.abs(found - expected).max() < 1e-4


def test_bits_go_where_they_are_missed_most(tmp_path, monkeypatch):
    bundle = tiny.tiny_bert()
    names = body(bundle)
    losses = {n: {32: 0.0, 8: 0.01, 4: 0.02} for n in names}
    losses[names[0]] = {32: 0.0, 8: 5.0, 4: 9.0}  # only float will do
    losses[names[1]] = {32: 0.0, 8: 0.0, 4: 3.0}
    monkeypatch.setattr(mixed, "_losses", lambda *_: losses)
    config = mixed.Config(**ANY, keep=0.4, embeddings=False, method="nearest")
    after = mixed.apply(bundle, config, tiny.context(tmp_path))
    found = packed.found(after.model)
    assert names[0] not in found
    assert found[names[1]].bits == 8


def test_what_a_layer_loses_alone_is_measured_and_leaves_no_trace(tmp_path):
    bundle, context = tiny.tiny_bert(), tiny.context(tmp_path)
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    config = mixed.Config(**ANY)
    losses = mixed._losses(bundle, body(bundle), config, context)
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    for loss in losses.values():
        assert loss[32] == 0 < loss[8]
    assert sum(loss[8] < loss[4] for loss in losses.values()) >= len(losses) - 1


def test_a_latency_budget_is_measured_once_and_held(tmp_path, monkeypatch):
    calls = []

    def measure(shapes, group, tokens, threads):
        calls.append(tokens)
        return {shape: shape[2] / 32 for shape in shapes}

    monkeypatch.setattr(product_latency, "measure", measure)
    config = mixed.Config(**ANY, constraint="latency", keep=0.5, method="nearest")
    context = tiny.context(tmp_path)
    after = mixed.apply(tiny.tiny_bert(), config, context)
    mixed.apply(tiny.tiny_bert(), config, context)
    assert len(calls) == 1
    found = packed.found(after.model)
    names = body(tiny.tiny_bert())
    assert sum(found[n].bits / 32 if n in found else 1 for n in names) <= 0.5 * len(names)


def test_products_are_really_timed():
    found = product_latency.measure([(16, 32, 32), (16, 32, 4), (16, 32, 8)], 16, 9, 1)
    assert sorted(found) == [(16, 32, 4), (16, 32, 8), (16, 32, 32)]
    assert all(ms > 0 for ms in found.values())


@pytest.mark.parametrize(
    ("make", "settings", "change", "reason"),
    [
        (tiny.tiny_lstm, {}, {}, "recurrent layer"),
        (lambda: dynamic.apply(tiny.tiny_bert(), dynamic.Config(), None), {}, {}, "already"),
        (tiny.tiny_bert, {}, {"train": tiny.examples(0)}, "no training texts to measure on"),
        (tiny.tiny_bert, {}, {"validation": tiny.examples(0)}, "no validation texts"),
        (tiny.tiny_bert, {"keep": 0.05}, {}, r"of the bytes in float \d\d\.\d% are left at least"),
    ],
)
def test_what_cannot_be_is_refused(make, settings, change, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(mixed, "_losses", lambda *_: pytest.fail("work was done"))
    context = replace(tiny.context(tmp_path), **change)
    with pytest.raises(TechniqueError, match=reason):
        mixed.apply(make(), mixed.Config(**{**ANY, **settings}), context)
