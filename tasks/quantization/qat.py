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
from tasks.bundle import Bundle
from tasks.calibration import CalibrationConfig, calibrated, refuse_uncalibrated
from tasks.fake_quantization import FakeQuantization
from tasks.retraining import Retraining
from tasks.technique import Context

LAST = True
REFUSES = ("recurrent layers",)
EFFECT = "quantized"


class Config(CalibrationConfig, Retraining):
    """Settings of quantization-aware training."""

    ranges: Literal["learned", "observed"] = "learned"
    """Train the steps with the weights, or keep to what was measured."""
    step_rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of the steps' logarithms, which moves by the schedule of `training` too."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle trained in rounded values, with its quantization in its export plan.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, there is no text
    to calibrate or train on, an activation is not finite, the loss is no longer a number, or the
    teacher knows other labels.
    """
    refuse_uncalibrated(bundle, context)
    train = retraining.prepare(bundle.labels, config, context)
    pressed = bundle.copy()
    fake = FakeQuantization(
        pressed.model,
        calibrated(pressed, config, context),
        config.weights,
        learned=config.ranges == "learned",
        per_channel=config.per_channel,
        embeddings=config.embeddings,
    )
    with fake.on():
        train(pressed, rate_of=fake.rates(config.step_rate, config.training.learning_rate))
    pressed.scales = fake.scales()
    pressed.export = config.step(bundle.export, fake.ranges())
    return pressed
