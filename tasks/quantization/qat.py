"""Quantization-aware training: the model learns with the rounding that it will be served with.

    v̂ = s·(clamp(round(v / s) + z, low, high) − z)    of every layer's weights v and input v

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.) Gradients pass the rounding as if it were not there,
and not at all where a value is clamped (straight-through). The steps s are learned with the weights
(Esser et al. 2020, "Learned Step Size Quantization"), or observed: of an input the range that was
measured before the first step, of weights their own range at each step. All formulas stand in
`tasks/fake_quantization.py`.

The training starts from the float model that it is given, with ranges calibrated on training text,
so that it only has to mend what rounding broke; by setting under a teacher. The export is that of
`quantization.static`, by the steps that were learned; the checkpoint stays in float.

Applies to every model with linear layers; recurrent layers are refused.
"""

from typing import Literal

from pydantic import Field

from tasks import retraining
from tasks.affine import grid
from tasks.bundle import Bundle
from tasks.calibration import ACTIVATIONS, calibrate, static_step
from tasks.errors import TechniqueError
from tasks.fake_quantization import FakeQuantization
from tasks.observers import Method, observer
from tasks.quantizable import matrices, refuse_quantized
from tasks.retraining import Retraining
from tasks.technique import Context

LAST = True
REFUSES = ("recurrent layers",)
EFFECT = "quantized"


class Config(Retraining):
    """Settings of quantization-aware training."""

    ranges: Literal["learned", "observed"] = "learned"
    """Train the steps with the weights, or keep to what was measured."""
    step_rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of the steps' logarithms, which moves by the schedule of `training` too."""
    observer: Method = "mse"
    """How the range of an activation is found at the start: min-max, percentile, entropy, or
    squared error."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of an activation's values, in percent, that its range holds; with `percentile`."""
    calibration_examples: int = Field(default=256, ge=1)
    """Training texts that ranges are measured on."""
    per_channel: bool = True
    """One step an output channel of the weights; False: one a matrix."""
    reduce_range: bool = False
    """7 bits a weight: for processors whose 8-bit products overflow (AVX2 without VNNI)."""
    embeddings: bool = True
    """Quantize the embedding tables too."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle trained in rounded values, with its quantization in its export plan.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, there is no text
    to calibrate or train on, an activation is not finite, the loss is no longer a number, or the
    teacher knows other labels.
    """
    refuse_quantized(bundle)
    matrices(bundle.model)
    if len(context.train) == 0:
        raise TechniqueError("there are no training texts to calibrate on: give more data")
    train = retraining.prepare(bundle.labels, config, context)
    pressed = bundle.copy()
    pressed.model.to(context.device).eval()
    seen = calibrate(
        pressed,
        context.train.sample(config.calibration_examples, context.seed),
        lambda: observer(config.observer, ACTIVATIONS, config.percentile),
        context.progress,
    )
    fake = FakeQuantization(
        pressed.model,
        seen,
        grid("int8", symmetric=True, reduce_range=config.reduce_range),
        learned=config.ranges == "learned",
        per_channel=config.per_channel,
        embeddings=config.embeddings,
    )
    with fake.on():
        train(pressed, rate_of=fake.rates(config.step_rate, config.training.learning_rate))
    pressed.scales = fake.scales()
    pressed.export = static_step(
        bundle.export,
        fake.ranges(),
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
        embeddings=config.embeddings,
    )
    return pressed
