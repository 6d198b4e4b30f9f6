"""Layers computed again for the gradients: the same weights, less kept, nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AlbertConfig

from tasks.bundle import Bundle
from tasks.distillation import hidden_states
from tasks.training.checkpoint import digest
from tasks.training.config import TrainingConfig
from tasks.training.depth import stacks
from tasks.training.loop import fit
from tasks.training.losses import cross_entropy
from tasks.training.progress import Silent
from tasks.training.regime import regime
from tests import tiny
from tests.training.test_lstm import tiny_lstm

SETTINGS = {"batch_size": 16, "learning_rate": 1e-2, "epochs": 2, "dropout": 0.2}


def _albert() -> Bundle:
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )
    )  # fmt: skip


def _gpt2_that_remembers() -> Bundle:
    bundle = tiny.tiny_gpt2()
    bundle.model.config.use_cache = True
    return bundle


MAKERS: list[Callable[[], Bundle]] = [
    tiny.tiny_bert,
    _gpt2_that_remembers,
    lambda: tiny.tiny("distilbert"),
    lambda: tiny.tiny("mpnet"),
    _albert,
    tiny_lstm,
]


def _trained(bundle: Bundle, scratch: Path, **settings: Any) -> str:
    fit(
        bundle, tiny.examples(64), tiny.examples(32, seed=1),
        TrainingConfig.model_validate(SETTINGS | settings), seed=5, device=torch.device("cpu"),
        scratch=scratch, progress=Silent(),
    )  # fmt: skip
    return digest(bundle.model.state_dict())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_are_the_same_to_the_bit(
    make: Callable[[], Bundle], precision: str, tmp_path: Path
) -> None:
    plain, saving = make(), make()
    before = plain.model.config.to_dict()
    expected = _trained(plain, tmp_path / "plain", precision=precision)
    found = _trained(saving, tmp_path / "saving", precision=precision, gradient_checkpointing=True)
    assert found == expected
    assert saving.model.config.to_dict() == before
    layers = [layer for members in stacks(saving.model).values() for layer in members]
    assert layers
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("form", ["tinybert", "minilmv2"])
def test_what_a_loss_watches_within_layers_is_the_same(form: Any, tmp_path: Path) -> None:
    results = []
    for saving in (False, True):
        training = {**SETTINGS, "gradient_checkpointing": saving}
        config = hidden_states.Config(form=form, training=TrainingConfig.model_validate(training))
        teacher = tiny.WiseTeacher(model=tiny.tiny_bert(seed=5))
        context = tiny.context(tmp_path / str(saving), teacher)
        results.append(hidden_states.apply(tiny.tiny_bert(), config, context))
    assert digest(results[0].model.state_dict()) == digest(results[1].model.state_dict())


def _kept_bytes(bundle: Bundle, **settings: Any) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in bundle.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = bundle.tokenizer(
        list(tiny.examples(64).texts),
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    bundle.model.train()
    with regime(bundle.model, TrainingConfig(**settings)), saved_tensors_hooks(pack, lambda t: t):
        output = bundle.model(**inputs)
        cross_entropy(output, {"labels": torch.zeros(64, dtype=torch.long)})
    return sum(kept.values())


@pytest.mark.parametrize("make", [tiny.tiny_bert, tiny.tiny_gpt2, lambda: tiny.tiny("mpnet")])
def test_less_is_kept(make: Callable[[], Bundle]) -> None:
    assert _kept_bytes(make(), gradient_checkpointing=True) < _kept_bytes(make()) / 3


def test_a_training_may_go_on_with_the_other_setting(tmp_path: Path) -> None:
    class Fall(Silent):
        steps = 0

        def advance(self, steps: int, **_: Any) -> None:
            self.steps += steps
            if self.steps >= 5:
                raise KeyboardInterrupt

    expected = _trained(tiny.tiny_bert(), tmp_path / "whole")
    given: dict[str, Any] = {
        "train": tiny.examples(64), "validation": tiny.examples(32, seed=1), "seed": 5,
        "device": torch.device("cpu"), "scratch": tmp_path / "killed",
    }  # fmt: skip
    config = TrainingConfig.model_validate({**SETTINGS, "checkpoint_seconds": 1e-6})
    with pytest.raises(KeyboardInterrupt):
        fit(tiny.tiny_bert(), config=config, progress=Fall(), **given)
    bundle, rest = tiny.tiny_bert(), Fall()
    rest.steps = -100
    config = config.model_copy(update={"gradient_checkpointing": True})
    fit(bundle, config=config, progress=rest, **given)
    assert rest.steps == -92  # eight steps in all: those done before are counted, not done again
    assert digest(bundle.model.state_dict()) == expected
