"""Weight-only quantization: few bits on disk, the answers of the packed weights everywhere."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tasks import bundle as bundles
from tasks import packed
from tasks.errors import TechniqueError
from tasks.quantization import dynamic, weight_only
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import Contract, divergence
from tests.techniques.test_quantization_binary import TEXTS, body


def _prove(before, after, config):
    found = packed.found(after.model)
    assert set(found) >= set(body(before))
    tables = {n for n, m in before.model.named_modules() if isinstance(m, nn.Embedding)}
    assert (tables <= set(found)) == config.embeddings
    for name, part in found.items():
        assert (part.bits, part.group) == (config.bits, config.group)
        assert (part.zero is None) == config.symmetric
        module = before.model.get_submodule(name)
        rows = module.weight if isinstance(module, (nn.Linear, nn.Embedding)) else module.weight.T
        error = (part.rows_at() - rows).abs().max() / rows.abs().max()
        assert 0 < error < (1.5 if config.method == "gptq" else 0.3)
    shift = divergence(tiny.answers(before, TEXTS), tiny.answers(after, TEXTS)).mean()
    assert 0 < shift < 0.2


CONTRACT = Contract(
    good=(
        {},
        {"bits": 8, "group": 16, "symmetric": True, "calibration_examples": 16},
        {"method": "nearest", "embeddings": False, "head": True},
    ),
    bad=(
        ({"bits": 3}, "4 or 8"),
        ({"group": 20}, "16, 32, 64, 128 or 256"),
        ({"method": "magic"}, "'gptq' or 'nearest'"),
        ({"damping": 0}, "greater than 0"),
        ({"calibration_examples": 0}, "greater than or equal to 1"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "mpnet"])
@pytest.mark.parametrize("settings", CONTRACT.good)
def test_the_export_answers_as_the_packed_model(kind, settings, tmp_path):
    config = weight_only.Config(**settings)
    after = weight_only.apply(tiny.tiny(kind), config, tiny.context(tmp_path))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    facts = export(again, tmp_path / "export")
    assert facts.packed >= len(packed.found(after.model))
    products = sum(isinstance(p, packed.PackedLinear) for p in packed.found(after.model).values())
    assert facts.operators["MatMulNBits"] == products
    expected = torch.softmax(torch.from_numpy(tiny.answers(after, TEXTS)), 1).numpy()
    found = Session(tmp_path / "export", 1).probabilities(TEXTS)
    assert np.abs(found - expected).max() < 1e-4


def test_four_bits_are_four_bits_on_disk(tmp_path):
    bundle = tiny.tiny_bert()
    config = weight_only.Config(group=16, symmetric=True, method="nearest", head=True)
    after = weight_only.apply(bundle, config, tiny.context(tmp_path))
    weights = sum(p.num_packed for p in packed.found(after.model).values())
    export(after, tmp_path / "export")
    (path,) = (tmp_path / "export").glob("*.onnx")
    graph = onnx.load(str(path)).graph
    stored = sum(len(t.raw_data) for t in graph.initializer if t.data_type == 2 and t.dims)
    assert stored == weights / 2
    assert not [
        t.name for t in graph.initializer
        if t.data_type == 1 and len(t.dims) == 2 and np.prod(t.dims) > 512 and "codes" not in t.name
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "change", "reason"),
    [
        (tiny.tiny_lstm, {}, "recurrent layer"),
        (lambda: dynamic.apply(tiny.tiny_bert(), dynamic.Config(), None), {}, "quantized already"),
        (tiny.tiny_bert, {"train": tiny.examples(0)}, "give more data, or set `method: nearest`"),
    ],
)
def test_what_cannot_be_is_refused(make, change, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        weight_only.apply(make(), weight_only.Config(), replace(tiny.context(tmp_path), **change))
