"""The one training loop: every technique that trains, and the baseline, trains here.

AdamW (Loshchilov and Hutter 2019), gradients clipped by norm, a schedule with warm-up,
length-bucketed batches padded to the batch, early stop on validation data, and exact resume: a
training that was killed goes on from its last checkpoint to the same weights.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tasks.bundle import Bundle
from tasks.errors import SettingsError, TechniqueError
from tasks.training import checkpoint, optimizer, schedules
from tasks.training.batches import UNLABELLED, Encoded, Examples
from tasks.training.config import WITHOUT_EFFECT, TrainingConfig
from tasks.training.losses import Loss, cross_entropy, measured
from tasks.training.predict import encoded_logits
from tasks.training.progress import Progress
from tasks.training.record import FitResult, State
from tasks.training.regime import regime
from tasks.training.seeding import seed_everything

AfterStep = Callable[[nn.Module, int, int], None]
"""Called with the model, the number of steps done, and of all."""
BeforeStep = Callable[[int, int], None]
"""Called with the number of steps done, and of all: for a loss that moves with the training."""
AfterUpdate = Callable[[nn.Module, Mapping[str, float]], None]
"""Called with the model and, by a parameter's name, the learning rate it was updated with: for a
proximal step. Zeros of sparse parameters are put back after it."""
RateOf = Callable[[str], float]
"""Name of a parameter → factor of its learning rate."""
_EVALUATION_BATCH = 64


def _same_rate(_name: str) -> float:
    return 1.0


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
    before_step: BeforeStep | None = None,
    after_update: AfterUpdate | None = None,
    after_step: AfterStep | None = None,
    keep: Literal["best", "last"] = "best",
    forward: Mapping[str, bool] = MappingProxyType({}),
    rate_of: RateOf = _same_rate,
) -> FitResult:
    """Train `bundle.model` in place and leave it on the CPU, in evaluation mode.

    `keep="best"` ends with the weights of the best evaluation (accuracy on validation data, then
    loss) and stops early after `config.patience` evaluations with no gain. `keep="last"` runs to
    the end, for a schedule that must reach it. `forward` are further arguments of the model
    (`output_hidden_states=True`), whose outputs the loss is given. `rate_of` gives, for a
    parameter's name, the factor of its learning rate, that of its layer aside.

    A checkpoint in `scratch` of this very training (weights at its start, data, settings, seed) is
    gone on from. What the loss and the hooks are set to is not told apart: `scratch` belongs to
    one set of settings. At the end the result stays there, so that a caller who dies before he has
    saved it trains nothing twice; he removes the folder.

    Raises TechniqueError where there is nothing to train on, or where loss, gradients or weights
    are no longer numbers (the last checkpoint, of numbers alone, then stays), SettingsError where
    the device cannot compute in `config.precision`, StoreError where a checkpoint cannot be
    written.
    """
    if len(train) == 0:
        raise TechniqueError("there are no training texts: give more data")
    if not (validation.labels != UNLABELLED).any():
        raise TechniqueError(
            "no validation text has a label, so nothing can be chosen by: add some"
        )
    if config.precision == "fp16" and device.type == "cpu":
        raise SettingsError("`precision: fp16` needs a GPU; on a CPU use fp32 or bf16")
    seed_everything(seed)
    hooks = _Hooks(loss, before_step, after_update, after_step, forward, rate_of)
    with regime(bundle.model, config):
        training = _Training(bundle, train, validation, config, seed, device, hooks, keep)
        result = training.run(scratch, progress)
    bundle.model.to("cpu").eval()
    return result


@dataclass(frozen=True)
class _Hooks:
    """What the caller of `fit` has a say in."""

    loss: Loss
    before_step: BeforeStep | None
    after_update: AfterUpdate | None
    after_step: AfterStep | None
    forward: Mapping[str, bool]
    rate_of: RateOf


class _Training:
    def __init__(
        self,
        bundle: Bundle,
        train: Examples,
        validation: Examples,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        hooks: _Hooks,
        keep: Literal["best", "last"],
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.hooks, self.keep = hooks, keep
        AcceleratorState._reset_state(reset_partial_state=True)  # precision may differ by training
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,  # it knows one device a process; `device` is the caller's
            mixed_precision="no" if config.precision == "fp32" else config.precision,
        )
        self.plain = bundle.model.to(device)
        chosen = train.sample(config.max_examples, seed)
        self.train = Encoded(chosen, bundle.tokenizer, bundle.max_length)
        self.validation = Encoded(validation, bundle.tokenizer, bundle.max_length)
        self.sparse = [self.plain.get_parameter(name) for name in bundle.sparse]
        num_batches = math.ceil(len(self.train) / config.batch_size)
        self.steps_per_epoch = math.ceil(num_batches / config.accumulation)
        self.total = max(1, round(config.epochs * self.steps_per_epoch))
        self.factor = schedules.factor(config, self.total)
        self.fingerprint = self._fingerprint(bundle.sparse)
        self.model, self.optimizer = self.accelerator.prepare(
            self.plain, optimizer.adamw(self.plain, config, hooks.rate_of)
        )
        self.state = State()
        self.saved = self.resumed = 0
        """The steps of the last resumable checkpoint and of the one that this run went on from; 0
        where there is none."""
        self.best: checkpoint.Tensors = {}
        self.epoch, self.batches = -1, list[np.ndarray]()

    def _fingerprint(self, sparse: tuple[str, ...]) -> str:
        """Return a hash of all that the result depends on, but for the loss and the hooks."""
        settings = self.config.model_dump(exclude=WITHOUT_EFFECT)
        facts = [settings, self.seed, self.keep, self.device.type, sorted(sparse)]
        found = hashlib.sha256(json.dumps(facts).encode())
        found.update(checkpoint.digest(self.plain.state_dict()).encode())
        for encoded in (self.train, self.validation):
            found.update(json.dumps([encoded.pad_id, *encoded.ids]).encode())
            found.update(encoded.examples.labels.tobytes())
            for name, values in sorted(encoded.examples.columns.items()):
                found.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
        return found.hexdigest()

    def run(self, scratch: Path, progress: Progress) -> FitResult:
        self.kept = checkpoint.path_of(scratch, self.fingerprint)
        self._resume(scratch)
        progress.start("training", self.total)
        try:
            progress.advance(self.state.step)
            self._run(scratch, progress)
        finally:
            progress.stop()
            # mixed precision wraps the model's forward
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return self.state.result(self.total, self.steps_per_epoch, self.keep)

    def _run(self, scratch: Path, progress: Progress) -> None:
        began = saved = time.monotonic()
        before = self.state.seconds
        self.model.train()
        while not self.state.done:
            self._step()
            progress.advance(1, loss=self.state.running_loss, rate=self.state.examples_per_second)
            if self._is_evaluation():
                self._evaluate()
            self.state.seconds = before + time.monotonic() - began
            if self.state.done:
                self._finish(scratch)
            elif time.monotonic() - saved >= self.config.checkpoint_seconds:
                self._save(scratch)
                saved = time.monotonic()

    def _step(self) -> None:
        """Do one optimizer step over the gradients of `config.accumulation` batches."""
        began = time.monotonic()
        if self.hooks.before_step is not None:
            self.hooks.before_step(self.state.step, self.total)
        group = self._group()
        num_examples = sum(map(len, group))
        total = torch.zeros((), device=self.device)
        for indices in group:
            batch = {k: v.to(self.device) for k, v in self.train.batch(indices).items()}
            output = self.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                **self.hooks.forward,
            )
            value = self.hooks.loss(output, batch) * (len(indices) / num_examples)
            total += value.detach()
            self.accelerator.backward(value)
        self.state.losses.append(self._finite(total.item(), "loss", self.state.step + 1))
        self._update()
        self.state.step += 1
        if self.hooks.after_step is not None:
            self.hooks.after_step(self.plain, self.state.step, self.total)
        self.state.num_examples += num_examples
        self.state.step_seconds += time.monotonic() - began

    def _group(self) -> list[np.ndarray]:
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.batches = self.train.shuffled(self.config.batch_size, self.seed, epoch)
            self.epoch = epoch
        start = position * self.config.accumulation
        return self.batches[start : start + self.config.accumulation]

    def _update(self) -> None:
        losses = [entry["validation_loss"] for entry in self.state.history]
        factor = self.factor(self.state.step, losses)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.config.learning_rate * settings["rate"] * factor
        self.accelerator.unscale_gradients()
        norm = optimizer.clip(self.plain.parameters(), self.config.clip)
        if self.accelerator.scaler is None:  # which leaves out the steps of such gradients
            self._finite(norm, "gradient", self.state.step + 1)
        # seen at each step, not once: gradual pruning adds zeros, and a resumed one has them back
        zeros = [parameter == 0 for parameter in self.sparse]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # a step that fp16's scaler leaves out is no update
        if self.hooks.after_update is not None and not self.optimizer.step_was_skipped:
            self.hooks.after_update(self.plain, optimizer.rates(self.plain, self.optimizer))
        with torch.no_grad():
            for parameter, zero in zip(self.sparse, zeros, strict=True):
                parameter.masked_fill_(zero, 0)

    def _finite(self, value: float, what: str, step: int) -> float:
        if math.isfinite(value):
            return value
        raise self._diverged(f"the {what} is no longer a number", step)

    def _require_numbers(self, tensors: Iterable[torch.Tensor]) -> None:
        """Raise TechniqueError where a weight, or what the optimizer keeps of it, is no number."""
        if not checkpoint.all_finite(tensors):
            raise self._diverged("the weights are no longer numbers", self.state.step)

    def _diverged(self, what: str, step: int) -> TechniqueError:
        cure = "" if self.config.precision == "fp32" else ", or use `precision: fp32`"
        kept = ""
        if self.saved:
            again = ", as this one did" if self.resumed == self.saved else ""
            kept = (
                f"; the checkpoint of step {self.saved} is kept, from where a run with the same "
                f"settings goes on{again} ({self.kept})"
            )
        return TechniqueError(
            f"{what} at step {step} of {self.total}: lower `learning_rate`{cure}{kept}"
        )

    def _is_evaluation(self) -> bool:
        """Tell whether a share 1 / `evaluations_per_epoch` of an epoch, or all, has just ended."""
        often, step = self.config.evaluations_per_epoch, self.state.step
        shares, before = (n * often // self.steps_per_epoch for n in (step, step - 1))
        return shares > before or step >= self.total

    def _evaluate(self) -> None:
        """Measure validation data; keep the best weights; stop at the end or without gain."""
        state = self.state
        logits = encoded_logits(self.plain, self.validation, _EVALUATION_BATCH, self.device)
        value, accuracy = measured(logits, self.validation.examples.labels)
        entry = {
            "step": float(state.step),
            "training_loss": state.running_loss,
            "validation_loss": self._finite(value, "validation loss", state.step),
            "validation_accuracy": accuracy,
        }
        gained = state.enter(entry)
        if gained and self.keep == "best":
            self.best = {k: v.detach().clone() for k, v in self.plain.state_dict().items()}
        patient = self.keep == "last" or state.evaluations_without_gain < self.config.patience
        state.done = state.step >= self.total or not patient

    def _finish(self, scratch: Path) -> None:
        """Take the weights to keep; they stand as the training's last checkpoint."""
        if self.keep == "best":
            self.plain.load_state_dict(self.best, strict=False)  # a tied tensor is kept once
        self._require_numbers(self.plain.parameters())
        tensors = {f"model.{k}": v for k, v in self.plain.state_dict().items()}
        checkpoint.write(scratch, self.fingerprint, tensors, self._facts())

    def _save(self, scratch: Path) -> None:
        """Write a checkpoint to go on from, unless its weights are no numbers.

        Raises TechniqueError where they are not: the checkpoint before stays.
        """
        kept = optimizer.flat(self.optimizer)
        self._require_numbers([*self.plain.parameters(), *kept.values()])
        tensors = {f"model.{k}": v for k, v in self.plain.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in kept.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.write(scratch, self.fingerprint, tensors, self._facts())
        self.saved = self.state.step

    def _facts(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "fingerprint": self.fingerprint,
            "state": asdict(self.state),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _resume(self, scratch: Path) -> None:
        found = checkpoint.read(scratch, self.fingerprint)
        if found is None or found[1]["fingerprint"] != self.fingerprint:
            return
        tensors, facts = found
        self.plain.load_state_dict(checkpoint.part(tensors, "model."), strict=False)
        self.state = State(**facts["state"])
        if self.state.done:
            return
        self.saved = self.resumed = self.state.step
        self.best = checkpoint.part(tensors, "best.")
        optimizer.load_flat(self.optimizer, checkpoint.part(tensors, "optimizer."))
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        if facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
