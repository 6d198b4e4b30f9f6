"""Ranges of activations from real text, and int8 as PyTorch can imitate it.

What an exported layer computes in integers, y = scale_x · scale_w · Σ (q_x − zero_x) · q_w, is the
product of its inputs and weights, both rounded to the integers' grid (`tasks/affine.py`): a layer
that is given rounded ones answers in PyTorch as it will in int8.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tasks.affine import Grid, from_range, grid
from tasks.bundle import Bundle, ExportPlan
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.model_parts import is_linear
from tasks.observers import Method, Observer, observer
from tasks.quantizable import matrices, refuse_quantized, weight_map
from tasks.technique import Context
from tasks.training.batches import Encoded, Examples
from tasks.training.progress import Progress

ACTIVATIONS = grid("uint8", symmetric=False)
"""The integers of activations: unsigned, which runtimes multiply fastest by signed weights."""
Ranges = Mapping[str, tuple[float, float]]
"""Linear layer → least and greatest value of its input."""


STATIC = "quantize_static"
"""The step of an export plan that quantizes weights and activations by calibrated ranges."""


class CalibrationConfig(Frozen):
    """How ranges are measured, and what goes to int8 by them."""

    observer: Method = "mse"
    """How the range of an activation is found: min-max, percentile, entropy, or squared error."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of an activation's values, in percent, that its range holds; with `percentile`."""
    calibration_examples: int = Field(default=256, ge=1)
    """Training texts that ranges are measured on."""
    per_channel: bool = True
    """One scale an output channel of the weights; False: one a matrix."""
    reduce_range: bool = False
    """7 bits a weight: for processors whose 8-bit products overflow (AVX2 without VNNI)."""
    embeddings: bool = True
    """Quantize the embedding tables too."""

    @property
    def weights(self) -> Grid:
        """The integers of weights."""
        return grid("int8", symmetric=True, reduce_range=self.reduce_range)

    def step(
        self,
        plan: ExportPlan,
        ranges: Ranges,
        sensitivity: Mapping[str, float] = MappingProxyType({}),
        fallback: Sequence[str] = (),
    ) -> ExportPlan:
        """Return the plan with the model in int8, but for the modules named in `fallback`."""
        return plan.then(
            STATIC,
            ranges={name: list(limits) for name, limits in ranges.items()},
            sensitivity=dict(sensitivity),
            fallback=list(fallback),
            embeddings=self.embeddings,
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
        )


def refuse_uncalibrated(bundle: Bundle, context: Context) -> None:
    """Raise TechniqueError where the model cannot go to int8, or there is no text to calibrate on.

    It cannot where its plan quantizes already, a layer is recurrent, or a weight is not finite.
    """
    refuse_quantized(bundle)
    matrices(bundle.model)
    if len(context.train) == 0:
        raise TechniqueError("there are no training texts to calibrate on: give more data")


@dataclass(frozen=True)
class Calibration:
    """What was seen of a model's linear layers."""

    ranges: Ranges
    units: Mapping[str, tuple[str, ...]]
    """First layer → all that are given the same tensor (query, key and value), itself too."""


def calibrate(
    bundle: Bundle,
    examples: Examples,
    observers: Callable[[], Observer],
    progress: Progress,
    batch_size: int = 32,
) -> Calibration:
    """Return the range of each linear layer's input over `examples`, padding left out.

    `observers` makes a fresh observer. The model is used where it is and as it is. Raises
    TechniqueError where an input is not finite.
    """
    linear = {n: m for n, m in matrices(bundle.model).items() if is_linear(m)}
    watch = _Watch(linear, observers)
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    device = next(bundle.model.parameters()).device
    progress.start("calibrating", len(encoded))
    try:
        with watch.open(), torch.inference_mode():
            for indices in encoded.ordered(batch_size):
                batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
                watch.mask = batch["attention_mask"].bool()
                bundle.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                progress.advance(len(indices))
    finally:
        progress.stop()
    limits = {owner: seen.range() for owner, seen in watch.observers.items()}
    return Calibration(
        ranges={name: limits[owner] for name, owner in watch.owners.items()},
        units={
            owner: tuple(name for name in linear if watch.owners.get(name) == owner)
            for owner in limits
        },
    )


def calibrated(bundle: Bundle, config: CalibrationConfig, context: Context) -> Calibration:
    """Return what `calibrate` does, by the settings; the model is moved to the context's device.

    Raises TechniqueError where an input is not finite.
    """
    bundle.model.to(context.device).eval()
    return calibrate(
        bundle,
        context.train.sample(config.calibration_examples, context.seed),
        lambda: observer(config.observer, ACTIVATIONS, config.percentile),
        context.progress,
    )


class _Watch:
    """Observes the inputs of linear layers, a shared one once, without what is only padding."""

    def __init__(self, linear: Mapping[str, nn.Module], observers: Callable[[], Observer]) -> None:
        self.linear = linear
        self.fresh = observers
        self.mask = torch.empty(0)
        self.owners: dict[str, str] = {}
        """Layer → the first that is given the same tensor."""
        self.observers: dict[str, Observer] = {}
        self._last: tuple[Any, str] = (None, "")

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in self.linear.items()
        ]
        try:
            yield
        finally:
            self._last = (None, "")
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0]
            if values is self._last[0]:
                self.owners[name] = self._last[1]
                return
            owner = self.owners.setdefault(name, name)
            self._last = (values, owner)
            if owner not in self.observers:
                self.observers[owner] = self.fresh()
            self.observers[owner].observe(self._real(values, name))

        return hook

    def _real(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """Return the values at real tokens; raise TechniqueError where one is not finite."""
        if values.shape[:2] == self.mask.shape and values.dim() == 3:
            values = values[self.mask]
        if not torch.isfinite(values).all():
            raise TechniqueError(
                f"the input of layer `{name}` is not finite on training text, so that it has no "
                "range: train again at a lower `learning_rate`"
            )
        return values


class Simulation:
    """Computes in PyTorch what the export will in integers: rounded inputs, rounded weights."""

    def __init__(
        self,
        model: nn.Module,
        ranges: Ranges,
        weights: Grid,
        *,
        per_channel: bool,
        scales: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.model = model
        self.ranges = ranges
        self.weights = weights
        self.per_channel = per_channel
        self.scales = scales

    @contextmanager
    def on(self, names: Sequence[str]) -> Iterator[None]:
        """Let the modules `names` compute in int8, while the context lasts.

        Their weights in float are kept meanwhile: one copy of them.
        """
        hooks, kept = [], []
        try:
            for name in names:
                module = self.model.get_submodule(name)
                weight = module.get_parameter("weight")
                kept.append((weight, weight.data))
                found = weight_map(
                    module,
                    self.weights,
                    per_channel=self.per_channel,
                    scale=self.scales.get(name),
                )
                weight.data = found.rounded(weight.data).to(weight.dtype)
                if name in self.ranges:
                    hooks.append(module.register_forward_pre_hook(self._hook(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for weight, data in reversed(kept):  # a tied one was kept twice
                weight.data = data

    def _hook(self, name: str) -> Any:
        found = from_range(*self.ranges[name], ACTIVATIONS)

        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (found.rounded(inputs[0]).to(inputs[0].dtype), *inputs[1:])

        return hook


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the mean KL(expected ∥ found) in nats, from logits (texts, labels)."""
    p, q = (
        torch.log_softmax(torch.from_numpy(logits).double(), dim=1) for logits in (expected, found)
    )
    return float((p.exp() * (p - q)).sum(1).mean())
