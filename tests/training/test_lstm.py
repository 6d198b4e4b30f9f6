"""An LSTM goes through bundle, training, export and quantization as a Transformer does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks import bundle as bundles
from tasks import lstm
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.quantization import dynamic
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.structure import layer_drop
from tasks.training import baseline
from tasks.training.config import BaselineConfig, TrainingConfig
from tasks.training.loop import fit
from tasks.training.progress import Silent
from tests import tiny

TEXTS = tiny.examples(24, seed=5).texts


def tiny_lstm(layers: int = 2, seed: int = 0) -> Bundle:
    tokenizer = tiny.tokenizer()
    torch.manual_seed(seed)
    model = lstm.build(
        embedding=6, hidden=5, layers=layers, dropout=0.0,
        vocab_size=len(tokenizer), pad_id=0, num_labels=2,
    )  # fmt: skip
    return Bundle(model.eval(), tokenizer, tiny.LABELS, tiny.MAX_LENGTH)


def test_it_computes_what_torchs_packed_bidirectional_lstm_does() -> None:
    bundle = tiny_lstm()
    model = bundle.model
    reference = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for layer in range(2):
            for suffix, part in (("", model.forwards[layer]), ("_reverse", model.backwards[layer])):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    own = getattr(part, f"{name}_l0")
                    getattr(reference, f"{name}_l{layer}{suffix}").copy_(own)
    batch = bundle.tokenizer(TEXTS, padding=True, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 3
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embeddings(batch["input_ids"]), lengths, batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        _, (states, _) = reference(packed)
        expected = model.classifier(torch.cat([states[-2], states[-1]], dim=1)).numpy()
    np.testing.assert_allclose(tiny.answers(bundle, TEXTS), expected, atol=1e-6)


def test_padding_changes_nothing() -> None:
    bundle = tiny_lstm()
    alone = np.concatenate([tiny.answers(bundle, [text]) for text in TEXTS])
    np.testing.assert_allclose(tiny.answers(bundle, TEXTS), alone, atol=1e-6)


def test_it_reloads_to_the_same_answers(tmp_path: Path) -> None:
    bundle = tiny_lstm()
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(bundle, TEXTS))


def test_it_learns(tmp_path: Path) -> None:
    bundle, test = tiny_lstm(layers=1), tiny.examples(64, seed=9)
    config = TrainingConfig(epochs=12, batch_size=16, learning_rate=2e-2, patience=20)
    fit(
        bundle, tiny.examples(256), tiny.examples(64, seed=1), config, seed=3,
        device=torch.device("cpu"), scratch=tmp_path, progress=Silent(),
    )  # fmt: skip
    right = tiny.answers(bundle, test.texts).argmax(1) == test.labels
    assert right.mean() > 0.9


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_served_in_float_and_in_int8(tmp_path: Path, layers: int) -> None:
    bundle = tiny_lstm(layers)
    facts = export(bundle, tmp_path / "float")  # compares its logits with PyTorch's
    assert facts.operators["LSTM"] == 2 * layers
    context = tiny.context(tmp_path)
    small = dynamic.apply(bundle, dynamic.Config(), context)
    facts = export(small, tmp_path / "int8")
    assert facts.operators["DynamicQuantizeLSTM"] == 2 * layers
    assert "LSTM" not in facts.operators
    assert facts.quantized == 2 * layers + 1
    found = Session(tmp_path / "int8").probabilities(TEXTS, batch_size=1)
    powers = np.exp(tiny.answers(bundle, TEXTS))
    assert np.abs(found - powers / powers.sum(1, keepdims=True)).max() < 0.05


def test_layers_cannot_be_cut_from_it(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match="`nightpress-lstm` cannot be cut"):
        layer_drop.apply(tiny_lstm(), layer_drop.Config(keep=1), tiny.context(tmp_path))


def test_a_baseline_takes_the_base_models_tokenizer_alone(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    config = BaselineConfig(model="base", lstm={"embedding": 8, "hidden": 4, "layers": 2})
    made = baseline.load_base(tmp_path / "base", tiny.LABELS, config)
    assert made.model.config.model_type == lstm.MODEL_TYPE
    assert tiny.answers(made, TEXTS).shape == (24, 2)


def test_a_fresh_model_must_be_trained() -> None:
    with pytest.raises(ValueError, match="cannot go with `train: false`"):
        BaselineConfig(model="base", train=False, lstm={})
