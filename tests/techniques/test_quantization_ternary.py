"""Ternary weights: two bits each, with zeros that stay zeros."""

import numpy as np
import pytest
import torch

from tasks import bundle as bundles
from tasks import packed
from tasks.quantization import ternary
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy
from tests.techniques.test_quantization_binary import TEXTS, body


def _prove(before, after, config):
    found = packed.found(after.model)
    assert set(found) >= set(body(before))
    for part in found.values():
        assert part.packed.numel() == part.rows * -(-part.columns // 4)
        weights = part.rows_at()
        assert (weights == 0).any()
        for row in weights:
            assert len(row.abs().unique()) <= 2  # 0 and α


CONTRACT = Contract(
    good=(
        {"train": False},
        {"train": False, "embeddings": True, "head": True},
        {"training": SHORT, "limit": 2, "teacher": "baseline"},
    ),
    bad=(({"limit": 0.5}, "greater than 1"), ({"gradients": 1}, "'float' or 'binary'")),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_checkpoint_and_export_answer_alike(kind, tmp_path):
    config = ternary.Config(train=False, embeddings=True)
    after = ternary.apply(tiny.tiny(kind), config, tiny.context(tmp_path))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    facts = export(again, tmp_path / "export")
    assert facts.packed == len(packed.found(after.model))
    expected = torch.softmax(torch.from_numpy(tiny.answers(after, TEXTS)), 1).numpy()
    found = Session(tmp_path / "export", 1).probabilities(TEXTS)
    assert np.abs(found - expected).max() < 1e-4


def test_pruned_zeros_stay(tmp_path):
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.1.output.dense"
    with torch.no_grad():
        bundle.model.get_submodule(name).weight[:, ::2] = 0
    bundle.sparse = (f"{name}.weight", "classifier.weight")
    after = ternary.apply(bundle, ternary.Config(training=SHORT), tiny.context(tmp_path))
    assert not after.model.get_submodule(name).rows_at()[:, ::2].any()
    assert after.sparse == ("classifier.weight",)


def test_training_learns_in_three_levels(tmp_path):
    config = ternary.Config(training=LONG)
    after = ternary.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    assert accuracy(after) > 0.75
