"""Learning-rate schedules: against torch's own, and from layer to layer."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.optim import lr_scheduler
from transformers import AlbertConfig, get_linear_schedule_with_warmup

from tasks.training import optimizer, schedules
from tasks.training.config import TrainingConfig
from tasks.training.depth import layer_rates
from tasks.training.loop import fit
from tasks.training.progress import Silent
from tests import tiny
from tests.training.test_lstm import tiny_lstm

TOTALS = [(100, 0.1), (7, 0.5), (10, 0.0), (40, 0.25)]


def _sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def _factors(total: int, **settings: Any) -> list[float]:
    factor = schedules.factor(TrainingConfig(**settings), total)
    return [factor(step, ()) for step in range(total)]


def _torchs(total: int, warmup: float, make: Callable[[Any, int], Any]) -> list[float]:
    """The rates of torch's warm-up and, after it, of the scheduler that `make` gives."""
    sgd, rising = _sgd(), max(1, round(total * warmup))
    # torch's warm-up starts at the factor that ours has after one step
    rise = lr_scheduler.LinearLR(sgd, 1 / rising, total_iters=max(1, rising - 1))
    both = lr_scheduler.SequentialLR(sgd, [rise, make(sgd, total - rising)], [rising])
    rates = []
    with warnings.catch_warnings():
        # SequentialLR itself calls what torch has deprecated
        warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
        for _ in range(total):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            both.step()
    return rates


@pytest.mark.parametrize(("total", "warmup"), TOTALS)
@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "constant"}, lambda sgd, n: lr_scheduler.ConstantLR(sgd, 1.0)),
        ({"schedule": "linear"}, lambda sgd, n: lr_scheduler.LinearLR(sgd, 1, 0, n)),
        (
            {"schedule": "linear", "schedule_end": 0.3},
            lambda sgd, n: lr_scheduler.LinearLR(sgd, 1, 0.3, n),
        ),
        ({"schedule": "polynomial"}, lambda sgd, n: lr_scheduler.PolynomialLR(sgd, n, 2.0)),
        (
            {"schedule": "polynomial", "schedule_power": 0.7},
            lambda sgd, n: lr_scheduler.PolynomialLR(sgd, n, 0.7),
        ),
        ({"schedule": "cosine"}, lambda sgd, n: lr_scheduler.CosineAnnealingLR(sgd, n)),
        (
            {"schedule": "cosine", "schedule_end": 0.2},
            lambda sgd, n: lr_scheduler.CosineAnnealingLR(sgd, n, eta_min=0.2),
        ),
        (
            {"schedule": "exponential"},
            lambda sgd, n: lr_scheduler.ExponentialLR(sgd, 0.01 ** (1 / n)),
        ),
        (
            {"schedule": "exponential", "schedule_end": 0.5},
            lambda sgd, n: lr_scheduler.ExponentialLR(sgd, 0.5 ** (1 / n)),
        ),
    ],
)
def test_schedules_are_torchs(
    total: int, warmup: float, settings: dict[str, Any], make: Callable[[Any, int], Any]
) -> None:
    found = _factors(total, warmup=warmup, **settings)
    assert found == pytest.approx(_torchs(total, warmup, make), abs=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [*TOTALS, (1, 0.1)])
def test_the_usual_schedule_is_transformers_without_its_step_of_rate_zero(
    total: int, warmup: float
) -> None:
    rising = max(1, round(total * warmup))
    usual = get_linear_schedule_with_warmup(_sgd(), rising, total).lr_lambdas[0]
    steps = range(total)
    expected = [usual(s + 1) if s < rising < total else usual(s) for s in steps if total > 1]
    assert _factors(total, warmup=warmup) == pytest.approx(expected or [1.0])


@given(
    losses=st.lists(st.sampled_from([0.5, 0.49999, 0.45, 0.4, 0.3, 0.6, 0.0]), max_size=30),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(1, 4),
    lowest=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_a_plateau_is_torchs(
    losses: list[float], factor: float, patience: int, lowest: float
) -> None:
    sgd = _sgd()
    # torch waits for one evaluation more than its patience
    reference = lr_scheduler.ReduceLROnPlateau(
        sgd, factor=factor, patience=patience - 1, min_lr=lowest, eps=0.0
    )
    for count in range(len(losses) + 1):
        found = schedules.plateau(losses[:count], factor, patience, lowest)
        assert found == pytest.approx(sgd.param_groups[0]["lr"])
        if count < len(losses):
            reference.step(losses[count])


@given(
    total=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["constant", "linear", "polynomial", "cosine", "exponential"]),
    end=st.floats(0.01, 0.99),
)
def test_a_rate_rises_to_the_whole_and_never_again(
    total: int, warmup: float, schedule: str, end: float
) -> None:
    found = _factors(total, warmup=warmup, schedule=schedule, schedule_end=end)
    rising = max(1, round(total * warmup))
    assert found[:rising] == sorted(found[:rising])
    assert found[min(rising, total) - 1] == 1 or rising > total
    assert found[rising:] == sorted(found[rising:], reverse=True)
    assert all(end <= rate <= 1 or step < rising for step, rate in enumerate(found))


def test_a_plateau_lowers_the_rate_of_a_training(tmp_path: Path) -> None:
    rates: list[float] = []

    def watch(model: nn.Module, given: Any) -> None:
        rates.append(given["classifier.bias"])

    settings = {
        "schedule": "plateau", "plateau_factor": 0.1, "warmup": 0.0, "batch_size": 16, "epochs": 6,
        "learning_rate": 0.05, "patience": 100, "evaluations_per_epoch": 2,
    }  # fmt: skip
    result = fit(
        tiny.tiny_bert(), tiny.examples(64), tiny.examples(32, seed=1),
        TrainingConfig.model_validate(settings), seed=5, device=torch.device("cpu"),
        scratch=tmp_path, progress=Silent(), after_update=watch,
    )  # fmt: skip
    losses = [entry["validation_loss"] for entry in result.history]
    reference = lr_scheduler.ReduceLROnPlateau(sgd := _sgd(), factor=0.1, patience=0, eps=0.0)
    expected = []
    for loss in losses:
        expected += 2 * [0.05 * sgd.param_groups[0]["lr"]]
        reference.step(loss)
    assert rates == pytest.approx(expected)
    assert len(set(expected)) > 2, "the example has no plateau"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"schedule": "step"}, "'constant', 'linear'"),
        ({"schedule_end": 1}, "less than 1"),
        ({"schedule_end": -0.1}, "greater than or equal to 0"),
        ({"schedule": "exponential", "schedule_end": 0}, "never reaches `schedule_end` 0"),
        ({"schedule_power": 0}, "greater than 0"),
        ({"schedule": "plateau"}, "after 2 evaluations .* there are 1 in all: raise `eval"),
        ({"schedule": "plateau", "epochs": 4, "plateau_patience": 3}, "after 4 evaluations"),
        ({"plateau_factor": 1}, "less than 1"),
        ({"plateau_patience": 0}, "greater than or equal to 1"),
        ({"layer_decay": 0}, "greater than 0"),
        ({"layer_decay": 1.1}, "less than or equal to 1"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainingConfig.model_validate(settings)


def _albert() -> Any:
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "embeddings", "layer", "last", "head"),
    [
        (
            tiny.tiny_bert,
            ("bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"),
            "bert.encoder.layer.1.attention.self.query.weight",
            "bert.encoder.layer.2.output.LayerNorm.bias",
            ("bert.pooler.dense.weight", "classifier.bias"),
        ),
        (
            tiny.tiny_gpt2,
            ("transformer.wte.weight", "transformer.wpe.weight"),
            "transformer.h.1.attn.c_attn.weight",
            "transformer.h.2.ln_2.weight",
            ("transformer.ln_f.weight", "score.weight"),
        ),
        (
            lambda: tiny.tiny("distilbert"),
            ("distilbert.embeddings.position_embeddings.weight",),
            "distilbert.transformer.layer.1.ffn.lin1.weight",
            "distilbert.transformer.layer.2.ffn.lin1.weight",
            ("pre_classifier.weight", "classifier.weight"),
        ),
        (
            lambda: tiny.tiny("mpnet"),
            ("mpnet.embeddings.LayerNorm.weight", "mpnet.encoder.relative_attention_bias.weight"),
            "mpnet.encoder.layer.1.attention.attn.q.weight",
            "mpnet.encoder.layer.2.attention.attn.q.weight",
            ("classifier.dense.weight",),
        ),
    ],
)
def test_the_rate_falls_from_layer_to_layer(
    make: Callable[[], Any], embeddings: tuple[str, ...], layer: str, last: str,
    head: tuple[str, ...],
) -> None:  # fmt: skip
    rates = layer_rates(make().model, 0.5)
    assert [rates[name] for name in embeddings] == [0.5**4] * len(embeddings)
    assert rates[layer] == 0.5**2
    assert rates[last] == 0.5
    assert [rates[name] for name in head] == [1.0] * len(head)


def test_layers_that_are_shared_or_side_by_side_have_one_rate() -> None:
    albert = layer_rates(_albert().model, 0.5)
    shared = {rate for name, rate in albert.items() if "albert_layer_groups" in name}
    assert shared == {0.5}
    assert albert["albert.encoder.embedding_hidden_mapping_in.weight"] == 0.25
    lstm = layer_rates(tiny_lstm().model, 0.5)
    assert lstm["forwards.0.weight_ih_l0"] == lstm["backwards.0.weight_ih_l0"] == 0.25
    assert lstm["forwards.1.weight_ih_l0"] == lstm["backwards.1.weight_ih_l0"] == 0.5
    assert (lstm["embeddings.weight"], lstm["classifier.weight"]) == (0.125, 1.0)


def test_the_optimizer_holds_the_rates() -> None:
    model = tiny.tiny_bert().model
    plain = optimizer.adamw(model, TrainingConfig(), lambda _: 1.0)
    assert [group["rate"] for group in plain.param_groups] == [1.0, 1.0]
    config = TrainingConfig(layer_decay=0.5, learning_rate=0.1)
    made = optimizer.adamw(model, config, lambda name: 3.0 if name == "classifier.bias" else 1.0)
    for group in made.param_groups:
        group["lr"] = config.learning_rate * group["rate"]
    rates = optimizer.rates(model, made)
    assert rates["classifier.bias"] == pytest.approx(0.3)
    assert rates["classifier.weight"] == pytest.approx(0.1)
    assert rates["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(0.0125)
    assert rates.keys() == dict(model.named_parameters()).keys()
    count = sum(len(group["params"]) for group in made.param_groups)
    assert count == len(list(model.parameters()))
