"""Any classifier of the Hugging Face form becomes a baseline, or is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from tasks import bundle as bundles
from tasks.bundle import Bundle
from tasks.errors import NightpressError, SettingsError, TechniqueError
from tasks.training.baseline import load_base, train
from tasks.training.batches import unlabelled
from tasks.training.config import BaselineConfig
from tasks.training.predict import logits
from tests import tiny

LABELS = ("bad", "good", "so-so")
EXAMPLES = tiny.examples(24)


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny three-label models, as `save_pretrained` writes them."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("bert", "roberta", "distilbert", "electra", "mpnet"):
        made = tiny.tiny(kind)
        _write(root / kind, tiny.bundle_of(made.model.config, labels=LABELS))
    albert = AlbertConfig(
        vocab_size=32, max_position_embeddings=32, embedding_size=8, hidden_size=16,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    )  # fmt: skip
    _write(root / "albert", tiny.bundle_of(albert, labels=LABELS))
    _write_gpt2(root / "gpt2")
    return root


def _write(folder: Path, bundle: Bundle) -> None:
    bundle.model.save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)


def _write_gpt2(folder: Path) -> None:
    """GPT-2 as it is published: byte-level BPE, no padding token, none in the configuration."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny.examples(64).texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=2, n_head=4, num_labels=len(LABELS),
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def _load(folder: Path, labels: tuple[str, ...] = LABELS, **settings: Any) -> Bundle:
    given = {"model": "x", "max_length": 30} | settings
    return load_base(folder, labels, BaselineConfig.model_validate(given))


KINDS = ["bert", "roberta", "distilbert", "electra", "mpnet", "albert", "gpt2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_model_answers_in_the_order_of_the_data(
    kind: str, models_folder: Path
) -> None:
    own = {"LABEL_0": "so-so", "LABEL_1": "bad", "LABEL_2": "good"}
    first = _load(models_folder / kind, tuple(own.values()), train=False, label_map=own)
    sorted_ = _load(models_folder / kind, LABELS, train=False, label_map=own)
    answers = logits(first, EXAMPLES)
    assert np.ptp(answers, axis=1).min() > 1e-4, "labels must differ for their order to show"
    np.testing.assert_allclose(logits(sorted_, EXAMPLES), answers[:, [1, 2, 0]], atol=1e-5)
    assert sorted_.labels == LABELS
    assert sorted_.model.config.id2label == dict(enumerate(LABELS))
    assert sorted_.model.config.num_labels == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_head_is_the_seeds_and_has_the_labels_of_the_data(
    kind: str, models_folder: Path
) -> None:
    for labels in (LABELS, ("no", "yes")):
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(logits(_load(models_folder / kind, labels), EXAMPLES))
        assert found[0].shape == (24, len(labels))
        assert (found[0] == found[1]).all()
        assert not np.allclose(found[0], found[2])


def test_gpt2_pads_right_with_its_end_token_and_trains(models_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = _load(models_folder / "gpt2", tiny.LABELS, training={
        "epochs": 6, "learning_rate": 1e-2, "batch_size": 16})  # fmt: skip
    assert bundle.model.config.pad_token_id == bundle.tokenizer.pad_token_id == 0
    together = logits(bundle, EXAMPLES)
    alone = [logits(bundle, EXAMPLES.take(np.array([i])))[0] for i in range(24)]
    np.testing.assert_allclose(together, np.array(alone), atol=1e-5)
    config = BaselineConfig.model_validate(
        {"model": "x", "training": {"epochs": 10, "learning_rate": 1e-2, "batch_size": 8}}
    )
    trained, result = train(bundle, tiny.context(tmp_path), config)
    assert result.best_validation_accuracy > 0.75
    assert (logits(bundle, EXAMPLES) == together).all(), "the base given stays as it was"
    assert not np.allclose(logits(trained, EXAMPLES), together)


def test_half_precision_is_read_as_fp32_and_stays_so(models_folder: Path, tmp_path: Path) -> None:
    half = tiny.tiny_bert()
    half.model.half()
    _write(tmp_path / "half", half)
    bundle = _load(tmp_path / "half", tiny.LABELS)
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert (logits(again, EXAMPLES) == logits(bundle, EXAMPLES)).all()


def test_a_model_without_a_head_gets_one_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = tiny.tiny_bert()
    AutoModel.from_config(body.model.config).save_pretrained(tmp_path)
    body.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    assert _load(tmp_path).model.config.num_labels == 3
    assert capfd.readouterr() == ("", "")
    with pytest.raises(TechniqueError, match=r"not fine-tuned: .*classifier.*`baseline.train: tr"):
        _load(tmp_path, train=False)


def _config(change: dict[str, Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return edit


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names] and None


def _rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def _own_code(folder: Path) -> None:
    _config({"model_type": "mine", "auto_map": {"AutoConfig": "m.C"}})(folder)
    (folder / "m.py").write_text("raise SystemExit('foreign code has run')")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_without("tokenizer.json", "tokenizer_config.json", "vocab.txt"), "has no tokenizer: put"),
        (_without("config.json"), "has no config.json"),
        (_rename("model.safetensors", "pytorch_model.bin"), "has no model.safetensors"),
        (_truncate, "model in .* cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{") and None, "tokenizer in .* cannot be"),
        (lambda f: (f / "config.json").write_text("{") and None, "configuration in .* cannot be"),
        (_config({"model_type": "vit"}), "is a `vit`, which .* text classifier"),
        (_config({"model_type": "zork"}), "configuration in .* cannot be loaded"),
        (_own_code, "configuration in .* cannot be loaded"),
        (_config({"hidden_size": 32}), "do not fit its config.json"),
        (_config({"num_hidden_layers": 5}), "do not fit its config.json: 32 are missing"),
        (_config({"vocab_size": 8}), "do not fit its config.json"),
    ],
)
def test_a_folder_with_a_fault_is_refused(
    fault: Callable[[Path], None], words: str, models_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models_folder / "bert", folder)
    fault(folder)
    with pytest.raises(TechniqueError, match=words) as found:
        _load(folder)
    assert "\n" not in str(found.value)


def test_a_tokenizer_of_another_model_is_refused(models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "bert", tmp_path / "model")
    for path in (models_folder / "gpt2").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    with pytest.raises(TechniqueError, match="knows 300 tokens, the model only 32"):
        _load(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "longest"), [("bert", 32), ("roberta", 31), ("mpnet", 30), ("gpt2", 32)]
)
def test_texts_longer_than_the_model_reads_are_refused(
    kind: str, longest: int, models_folder: Path
) -> None:
    with pytest.raises(SettingsError, match=f"set it to {longest} at most"):
        _load(models_folder / kind, max_length=longest + 1)
    bundle = _load(models_folder / kind, max_length=longest)
    assert np.isfinite(logits(bundle, unlabelled(["film " * 60]))).all()


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        ({}, "labels are LABEL_0, LABEL_1, LABEL_2, the data's are bad, good, so-so; map them"),
        ({"LABEL_0": "bad", "LABEL_1": "bad", "LABEL_2": "good"}, "map them in"),
        ({"LABEL_0": "bad", "LABEL_1": "good", "LABEL_2": "soso"}, "did you mean `so-so`"),
        ({"LABEL_0": "bad", "LABEL_1": "good", "LABLE_2": "so-so"}, "did you mean `LABEL_2`"),
    ],
)
def test_labels_that_do_not_match_are_refused(
    label_map: dict[str, str], words: str, models_folder: Path
) -> None:
    with pytest.raises(NightpressError, match=words):
        _load(models_folder / "bert", train=False, label_map=label_map)
