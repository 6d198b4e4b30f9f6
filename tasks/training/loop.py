"""The one training loop: every technique that trains, and the baseline, trains here.

AdamW (Loshchilov and Hutter 2019), gradients clipped by norm, a linear schedule with warm-up,
length-bucketed batches padded to the batch, early stop on validation data, and exact resume: a
training that was killed goes on from its last checkpoint to the same weights.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.training import checkpoint, schedules
from tasks.training.batches import UNLABELLED, Encoded, Examples
from tasks.training.config import TrainingConfig
from tasks.training.losses import Loss, cross_entropy
from tasks.training.predict import encoded_logits
from tasks.training.progress import Progress
from tasks.training.seeding import seed_everything

AfterStep = Callable[[nn.Module, int, int], None]
"""Called with the model, the number of steps done, and of all."""
_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class FitResult:
    """What a training did."""

    steps: int
    seconds: float
    """Wall time of this process; a resumed training's earlier part is not in it."""
    examples_per_second: float
    best_validation_loss: float
    best_validation_accuracy: float
    history: tuple[dict[str, float], ...]
    """One entry an evaluation: step, validation_loss, validation_accuracy, training_loss."""
    stopped: Literal["end", "patience"]


@dataclass
class _State:
    """What must survive a kill, besides weights, optimizer and random numbers."""

    step: int = 0
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    done: bool = False


def fit(
    bundle: Bundle,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device,
    scratch: Path,
    progress: Progress,
    loss: Loss = cross_entropy,
    after_step: AfterStep | None = None,
    keep: Literal["best", "last"] = "best",
) -> FitResult:
    """Train `bundle.model` in place and leave it in evaluation mode.

    `keep="best"` ends with the weights of the best evaluation (accuracy, then loss, on validation
    data). A checkpoint in `scratch` that fits these very arguments is gone on from; the last one
    stays there, so that a caller who dies before he has saved the result loses nothing.

    Raises TechniqueError where there is nothing to train on, or the loss is no longer a number.
    """
    if len(train) == 0:
        raise TechniqueError("there are no training texts; lower `max_length` or give more data")
    seed_everything(seed)
    training = _Training(bundle, train, validation, config, seed, device, loss, after_step, keep)
    result = training.run(scratch, progress)
    bundle.model.to("cpu").eval()
    return result


class _Training:
    def __init__(
        self,
        bundle: Bundle,
        train: Examples,
        validation: Examples,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        loss: Loss,
        after_step: AfterStep | None,
        keep: str,
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.loss, self.after_step, self.keep = loss, after_step, keep
        AcceleratorState._reset_state(reset_partial_state=True)  # precision may differ by training
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if config.precision == "fp32" else config.precision,
        )
        self.plain = bundle.model.to(device)
        self.model, self.optimizer = self.accelerator.prepare(self.plain, self._optimizer())
        self.train = Encoded(_limited(train, config, seed), bundle.tokenizer, bundle.max_length)
        self.validation = Encoded(validation, bundle.tokenizer, bundle.max_length)
        num_batches = math.ceil(len(self.train) / config.batch_size)
        self.steps_per_epoch = math.ceil(num_batches / config.accumulation)
        self.total = max(1, round(config.epochs * self.steps_per_epoch))
        self.factor = schedules.linear(self.total, config.warmup)
        parameters = dict(self.plain.named_parameters())
        self.sparse = [parameters[name] for name in bundle.sparse]
        self.state = _State()
        self.best: dict[str, torch.Tensor] = {}
        self.fingerprint = self._fingerprint(train, validation, keep)

    def _optimizer(self) -> torch.optim.AdamW:
        """Decay matrices alone: biases and normalization weights are not shrunk."""
        parameters = [p for p in self.plain.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in parameters if p.dim() > 1],
                "weight_decay": self.config.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)

    def _fingerprint(self, train: Examples, validation: Examples, keep: str) -> str:
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        shapes = {name: list(p.shape) for name, p in self.plain.named_parameters()}
        digest.update(json.dumps([self.seed, keep, self.total, shapes]).encode())
        for examples in (train, validation):
            digest.update(json.dumps(list(examples.texts)).encode())
            digest.update(examples.labels.tobytes())
            for name in sorted(examples.columns):
                digest.update(np.ascontiguousarray(examples.columns[name]).tobytes())
        return digest.hexdigest()

    def run(self, scratch: Path, progress: Progress) -> FitResult:
        self._resume(scratch)
        progress.start("training", self.total)
        progress.advance(self.state.step)
        began, first = time.monotonic(), self.state.step
        num_examples, saved = 0, time.monotonic()
        self.model.train()
        while not self.state.done:
            value, count = self._step()
            num_examples += count
            rate = num_examples / max(time.monotonic() - began, 1e-9)
            progress.advance(1, loss=value, rate=rate)
            if self._is_evaluation():
                self._evaluate(value)
            if self.state.done or time.monotonic() - saved >= self.config.checkpoint_seconds:
                self._save(scratch)
                saved = time.monotonic()
        progress.stop()
        seconds = time.monotonic() - began
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.keep == "best":
            self.plain.load_state_dict(self.best)
        return self._result(seconds, num_examples, first)

    def _result(self, seconds: float, num_examples: int, first: int) -> FitResult:
        history = self.state.history
        chosen = max(history, key=_merit) if self.keep == "best" else history[-1]
        assert self.state.step >= first
        return FitResult(
            steps=self.state.step,
            seconds=seconds,
            examples_per_second=num_examples / max(seconds, 1e-9),
            best_validation_loss=chosen["validation_loss"],
            best_validation_accuracy=chosen["validation_accuracy"],
            history=tuple(history),
            stopped="end" if self.state.step >= self.total else "patience",
        )

    def _step(self) -> tuple[float, int]:
        """Do one optimizer step; return its mean loss and the number of examples."""
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        batches = self._epoch(epoch)
        start = position * self.config.accumulation
        group = batches[start : start + self.config.accumulation]
        total = 0.0
        for indices in group:
            batch = {k: v.to(self.device) for k, v in self.train.batch(indices).items()}
            output = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
            value = self.loss(output, batch) / len(group)
            total += value.item()
            self.accelerator.backward(value)
        if not math.isfinite(total):
            raise TechniqueError(
                f"the loss is no longer a number at step {self.state.step + 1} of {self.total}; "
                "lower `learning_rate`, or use `precision: fp32`"
            )
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.config.learning_rate * self.factor(self.state.step)
        self.accelerator.clip_grad_norm_(self.plain.parameters(), self.config.clip)
        # seen at each step, not once: gradual pruning adds zeros, and a resumed one has them back
        zeros = [parameter == 0 for parameter in self.sparse]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, zero in zip(self.sparse, zeros, strict=True):
                parameter.masked_fill_(zero, 0)
        self.state.step += 1
        if self.after_step is not None:
            self.after_step(self.plain, self.state.step, self.total)
        return total, sum(len(indices) for indices in group)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        if getattr(self, "_epoch_of", None) != epoch:
            self._epoch_of = epoch
            self._batches = self.train.shuffled(self.config.batch_size, self.seed, epoch)
        return self._batches

    def _is_evaluation(self) -> bool:
        every = max(1, self.steps_per_epoch // self.config.evaluations_per_epoch)
        return self.state.step % every == 0 or self.state.step >= self.total

    def _evaluate(self, training_loss: float) -> None:
        """Measure validation data; keep the best weights; stop at the end or without gain."""
        logits = encoded_logits(self.plain, self.validation, _EVALUATION_BATCH, self.device)
        labels = self.validation.examples.labels
        known = labels != UNLABELLED
        shifted = logits[known].astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=1))
        entry = {
            "step": float(self.state.step),
            "training_loss": training_loss,
            "validation_loss": float(
                (log_sum - shifted[np.arange(known.sum()), labels[known]]).mean()
            ),
            "validation_accuracy": float((logits[known].argmax(axis=1) == labels[known]).mean()),
        }
        history = self.state.history
        gained = not history or _merit(entry) > max(map(_merit, history))
        history.append(entry)
        self.state.evaluations_without_gain = (
            0 if gained else self.state.evaluations_without_gain + 1
        )
        if gained and self.keep == "best":
            self.best = {k: v.detach().clone() for k, v in self.plain.state_dict().items()}
        patient = self.state.evaluations_without_gain < self.config.patience
        # a schedule that must reach its end (gradual pruning) is not cut short
        self.state.done = self.state.step >= self.total or (not patient and self.keep == "best")

    def _save(self, scratch: Path) -> None:
        tensors = {f"model.{k}": v for k, v in _untied(self.plain.state_dict()).items()}
        tensors |= {f"best.{k}": v for k, v in _untied(self.best).items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        scaler = self.accelerator.scaler
        facts = {
            "fingerprint": self.fingerprint,
            "state": vars(self.state),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        checkpoint.write(scratch, tensors, facts)

    def _resume(self, scratch: Path) -> None:
        found = checkpoint.read(scratch)
        if found is None or found[1].get("fingerprint") != self.fingerprint:
            return
        tensors, facts = found
        self.plain.load_state_dict(_part(tensors, "model."), strict=False)
        self.best = _part(tensors, "best.")
        states: dict[int, dict[str, Any]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, entry = name.partition(".")
            states.setdefault(int(index), {})[entry] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        if facts["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.state = _State(**facts["state"])


def _merit(entry: dict[str, float]) -> tuple[float, float]:
    return entry["validation_accuracy"], -entry["validation_loss"]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies, since safetensors refuses tensors that share memory."""
    return {name: tensor.clone() for name, tensor in state.items()}


def _limited(examples: Examples, config: TrainingConfig, seed: int) -> Examples:
    if config.max_examples is None or config.max_examples >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).permutation(len(examples))[: config.max_examples]
    return examples.take(np.sort(chosen))
