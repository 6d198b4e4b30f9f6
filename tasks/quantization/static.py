"""Static int8 quantization: the ranges of activations are measured beforehand, on training text.

    q = clamp(round(x / scale) + zero_point),    y ≈ scale_x · scale_w · Σ (q_x − zero_x) · q_w

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.) Every linear layer multiplies int8 weights (their
range symmetric, one a channel or one a matrix) by the unsigned 8-bit integers of its input, whose
range an observer found (`tasks/observers.py`): no text's own range is looked for at run time.

How much a layer loses is measured on validation data: with this layer alone in int8, the
divergence KL(float ∥ int8) of the answers. Layers that share an input (query, key and value) are
one. Where the whole model in int8 loses more accuracy than the budget, the layers that cost most
stay in float, as few as hold it. Ranges, costs and layers left in float stand in the export plan,
so that the exporter needs no data; the checkpoint stays in float.

Applies to every model with linear layers; recurrent layers are refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from torch import nn

from tasks.bundle import Bundle
from tasks.calibration import (
    Calibration,
    CalibrationConfig,
    Simulation,
    calibrated,
    divergence,
    refuse_uncalibrated,
)
from tasks.errors import TechniqueError
from tasks.quantizable import matrices
from tasks.technique import Context
from tasks.training.batches import UNLABELLED, Encoded, Examples
from tasks.training.losses import measured
from tasks.training.predict import encoded_logits

LAST = True
REFUSES = ("recurrent layers",)
NOTE = "quantization.static"
_BATCH = 32
Units = Mapping[str, tuple[str, ...]]

EFFECT = "quantized"


class Config(CalibrationConfig):
    """Settings of static quantization."""

    budget: float = Field(default=0.005, ge=0, lt=1)
    """Accuracy on validation data, of 1, that may be lost before layers go back to float."""
    sensitivity_examples: int = Field(default=64, ge=1)
    """Validation texts that a layer's own loss is measured on."""
    validation_examples: int = Field(default=2000, ge=1)
    """Validation texts, at most, that the budget is checked on."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with the quantization step, its ranges and fallbacks, in its export plan.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, there is no text
    to calibrate on or to check the budget with, an activation is not finite, or the budget leaves
    no linear layer in int8.
    """
    refuse_uncalibrated(bundle, context)
    labelled = np.flatnonzero(context.validation.labels != UNLABELLED)
    if len(labelled) == 0:
        raise TechniqueError("no validation text has a label to check the budget by: add some")
    validation = context.validation.take(labelled)
    pressed = bundle.copy()
    seen = calibrated(pressed, config, context)
    simulation = Simulation(
        pressed.model, seen.ranges, config.weights, per_channel=config.per_channel
    )
    search = _Search(pressed, config, context, _units(pressed, seen, config), simulation)
    costs = search.sensitivity(validation.sample(config.sensitivity_examples, context.seed))
    fallback = search.fallback(validation.sample(config.validation_examples, context.seed), costs)
    pressed.model.to("cpu")
    layers = ", ".join(fallback) or "none"
    pressed.notes = {**bundle.notes, NOTE: f"layers that stay in float for accuracy: {layers}"}
    pressed.export = config.step(bundle.export, seen.ranges, costs, fallback)
    return pressed


def _units(bundle: Bundle, seen: Calibration, config: Config) -> Units:
    """Return what goes to int8 or stays in float together: layers that share an input, a table."""
    if not config.embeddings:
        return seen.units
    tables = [n for n, m in matrices(bundle.model).items() if isinstance(m, nn.Embedding)]
    return {**seen.units, **{name: (name,) for name in tables}}


class _Search:
    """Finds what each unit costs, and which must stay in float."""

    def __init__(
        self,
        bundle: Bundle,
        config: Config,
        context: Context,
        units: Units,
        simulation: Simulation,
    ) -> None:
        self.bundle = bundle
        self.config = config
        self.context = context
        self.units = units
        self.simulation = simulation

    def sensitivity(self, examples: Examples) -> dict[str, float]:
        """Return what each unit costs alone: the mean KL(float ∥ int8) of the answers, in nats."""
        encoded = self._encoded(examples)
        expected = self._logits(encoded, [])
        costs = {}
        self.context.progress.start("measuring layers", len(self.units))
        try:
            for unit, names in self.units.items():
                costs[unit] = divergence(expected, self._logits(encoded, names))
                self.context.progress.advance(1)
        finally:
            self.context.progress.stop()
        return costs

    def fallback(self, examples: Examples, costs: dict[str, float]) -> list[str]:
        """Return the modules that stay in float: of the dearest units as few as hold the budget.

        Their number is bisected: with one unit fewer the budget was seen not to hold. Raises
        TechniqueError where no linear layer is left to be quantized.
        """
        encoded = self._encoded(examples)
        labels = encoded.examples.labels
        before = measured(self._logits(encoded, []), labels)[1]
        order = sorted(self.units, key=lambda unit: -costs[unit])

        def holds(count: int) -> bool:
            names = [name for unit in order[count:] for name in self.units[unit]]
            lost = before - measured(self._logits(encoded, names), labels)[1]
            return lost <= self.config.budget + 1e-9  # a share of a count, in floating point

        fails, enough = -1, len(order)
        probe = 0
        while enough - fails > 1:
            if holds(probe):
                enough = probe
            else:
                fails = probe
            probe = (fails + enough) // 2
        left = [name for unit in order[:enough] for name in self.units[unit]]
        if set(left) >= self.simulation.ranges.keys():
            raise TechniqueError(
                f"within `budget: {self.config.budget:g}` no linear layer can be in int8: allow "
                "more, try another `observer`, or use `quantization.dynamic`"
            )
        if left:
            self.context.progress.say(f"{len(left)} layers stay in float: {', '.join(left)}")
        return left

    def _encoded(self, examples: Examples) -> Encoded:
        return Encoded(examples, self.bundle.tokenizer, self.bundle.max_length)

    def _logits(self, encoded: Encoded, names: Sequence[str]) -> np.ndarray:
        with self.simulation.on(names):
            return encoded_logits(self.bundle.model, encoded, _BATCH)
