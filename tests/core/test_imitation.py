"""Int8 as PyTorch imitates it answers as ONNX Runtime does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.affine import from_range
from tasks.calibration import ACTIVATIONS
from tasks.imitation import by_text, imitation
from tasks.quantization import affine, dynamic, static
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import softmax

TEXTS = tiny.examples(48, seed=3).texts
KINDS = ("bert", "distilbert", "electra", "gpt2", "mpnet", "roberta")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
def test_dynamic_int8_answers_as_the_runtime_does(
    kind: str, weight_type: str, tmp_path: Path
) -> None:
    config = dynamic.Config.model_validate({"weight_type": weight_type})
    bundle = dynamic.apply(tiny.tiny(kind), config, tiny.context(tmp_path))
    export(bundle, tmp_path / "export")
    served = Session(tmp_path / "export", 1).probabilities(TEXTS, batch_size=1)
    found, note = imitation(bundle)
    in_float = softmax(tiny.answers(bundle, TEXTS))
    with found.on(found.names):
        imitated = softmax(tiny.answers(bundle, TEXTS))
    assert note == ""
    # a sum in another order may end in the next integer, in few texts
    assert np.median(np.abs(imitated - served)) < 1e-5
    assert np.abs(imitated - served).mean() < 0.1 * np.abs(in_float - served).mean()
    assert np.array_equal(softmax(tiny.answers(bundle, TEXTS)), in_float)


def test_static_int8_leaves_in_float_what_the_plan_does(tmp_path: Path) -> None:
    config = static.Config(budget=0.9, embeddings=False)
    bundle = static.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    found, _ = imitation(bundle)
    assert len(found.names) == 20
    assert not any("embeddings" in name for name in found.names)


def test_weights_that_hold_their_integers_need_no_imitation(tmp_path: Path) -> None:
    bundle = affine.apply(tiny.tiny_bert(), affine.Config(), tiny.context(tmp_path))
    found, note = imitation(bundle)
    assert found.names == ()
    assert "quantize_weights" in note


def test_each_text_has_its_own_range_and_its_padding_none() -> None:
    values = torch.tensor([[[0.1, -0.3], [0.9, 0.2], [50.0, -50.0]], [[3.0, 4.0]] * 3])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rounded = by_text(values, mask)
    by_hand = from_range(-0.3, 0.9, ACTIVATIONS).rounded(values[0, :2])
    assert torch.allclose(rounded[0, :2], by_hand)
    assert torch.allclose(rounded[1], from_range(0.0, 4.0, ACTIVATIONS).rounded(values[1]))
