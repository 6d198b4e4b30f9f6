"""Binary weights: a bit each, really, in the checkpoint and in the export."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tasks import bundle as bundles
from tasks import packed
from tasks.errors import TechniqueError
from tasks.model_parts import is_linear
from tasks.quantization import binary, dynamic
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy

TEXTS = tiny.examples(24, seed=3).texts


def body(bundle):
    """The linear layers that lie in a numbered layer."""
    return [
        name
        for name, module in bundle.model.named_modules()
        if is_linear(module) and any(part.isdigit() for part in name.split("."))
    ]


def _prove(before, after, config):
    found = packed.found(after.model)
    assert set(found) >= set(body(before))
    tables = [n for n, m in before.model.named_modules() if isinstance(m, nn.Embedding)]
    assert (set(tables) <= set(found)) == config.embeddings
    assert after.num_parameters() == before.num_parameters()
    for part in found.values():
        weights = part.rows_at()
        assert torch.equal(weights.abs(), weights.abs()[:, :1].expand_as(weights))
        assert part.packed.numel() == part.rows * -(-part.columns // 8)
    if not config.train:
        name = body(before)[0]
        module = before.model.get_submodule(name)
        rows = module.weight if isinstance(module, nn.Linear) else module.weight.T
        assert torch.allclose(found[name].rows_at().abs()[:, 0], rows.abs().mean(1), atol=1e-6)
        assert torch.equal(found[name].rows_at() > 0, rows >= 0)


CONTRACT = Contract(
    good=(
        {"train": False},
        {"train": False, "embeddings": True, "head": True},
        {"training": SHORT, "limit": 2},
        {"training": SHORT, "gradients": "binary", "teacher": "baseline"},
    ),
    bad=(
        ({"gradients": "none"}, "'float' or 'binary'"),
        ({"limit": 1}, "greater than 1"),
        ({"bits": 2}, "Extra inputs"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "mpnet"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_checkpoint_and_export_answer_alike_from_their_bits(kind, everywhere, tmp_path):
    config = binary.Config(train=False, embeddings=everywhere, head=everywhere)
    bundle = tiny.tiny(kind)
    after = binary.apply(bundle, config, tiny.context(tmp_path))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    facts = export(again, tmp_path / "export")  # which compares with PyTorch, to 1e-4
    assert facts.packed == len(packed.found(after.model))
    expected = torch.softmax(torch.from_numpy(tiny.answers(after, TEXTS)), 1).numpy()
    found = Session(tmp_path / "export", 1).probabilities(TEXTS)
    assert np.abs(found - expected).max() < 1e-4


def test_a_bit_is_a_bit_on_disk(tmp_path):
    from transformers import BertConfig

    bundle = tiny.bundle_of(
        BertConfig(
            vocab_size=32, max_position_embeddings=32, hidden_size=128, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=512,
        )
    )  # fmt: skip
    treated = sum(bundle.model.get_submodule(name).weight.numel() for name in body(bundle))
    rest = bundle.num_parameters() - treated
    context = tiny.context(tmp_path)
    after = binary.apply(bundle, binary.Config(train=False), context)
    bundles.save(after, tmp_path / "saved")
    bits, scales = treated / 8, 4 * 2 * (4 * 128 + 512 + 128)
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert bits + scales + 4 * rest <= size < (bits + scales + 4 * rest) * 1.05 + 20_000
    export(after, tmp_path / "export")
    (model,) = (tmp_path / "export").glob("*.onnx")
    graph = onnx.load(str(model)).graph
    stored = sum(len(t.raw_data) for t in graph.initializer if t.data_type == 2 and t.dims)
    assert stored == bits
    size = model.stat().st_size
    assert size < (bits + scales + 4 * rest) * 1.05 + 60_000


def test_training_learns_in_bits(tmp_path):
    context = tiny.context(tmp_path)
    assert accuracy(tiny.tiny_bert()) < 0.6
    trained = binary.apply(tiny.tiny_bert(), binary.Config(training=LONG), context)
    assert accuracy(trained) > 0.75
    assert set(packed.found(trained.model)) == set(body(tiny.tiny_bert()))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tiny.tiny_lstm, "recurrent layer"),
        (lambda: dynamic.apply(tiny.tiny_bert(), dynamic.Config(), None), "quantized already"),
        (
            lambda: replace(tiny.tiny_bert(), sparse=("bert.pooler.dense.weight",)),
            "cannot be zero: use `quantization.ternary`",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        binary.apply(make(), binary.Config(), tiny.context(tmp_path))


def test_bits_are_not_packed_twice(tmp_path):
    context = tiny.context(tmp_path)
    once = binary.apply(tiny.tiny_bert(), binary.Config(train=False), context)
    with pytest.raises(TechniqueError, match="quantized already"):
        binary.apply(once, binary.Config(train=False), context)
