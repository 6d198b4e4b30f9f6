"""Dynamic int8 quantization: weights beforehand, activations as each text arrives.

    q = clamp(round(x / scale) + zero_point),    x ≈ scale · (q − zero_point)

Weights get their scale from their own range (one a matrix, or one an output channel), activations
theirs from each batch at run time (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", section 2; ONNX Runtime's
`quantize_dynamic` does the arithmetic). Nothing is trained and no data is read: the technique adds
a step to the export plan, and the checkpoint stays in float for the techniques after it.

Applies to every model; the matrix products and, by setting, the embedding tables are quantized.
"""

from tasks.affine import Kind
from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.quantizable import refuse_quantized
from tasks.technique import Context

READS_DATA = False
LAST = True
STEP = "quantize_dynamic"

EFFECT = "quantized"


class Config(Frozen):
    """Settings of dynamic quantization."""

    per_channel: bool = True
    """One scale an output channel; False: one a matrix."""
    weight_type: Kind = "int8"
    """Signed, of a symmetric range; or unsigned, from the least weight to the greatest."""
    reduce_range: bool = False
    """7 bits a weight: for processors whose 8-bit products overflow (AVX2 without VNNI)."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with the quantization step added to its export plan.

    Raises TechniqueError where the plan quantizes already.
    """
    refuse_quantized(bundle)
    pressed = bundle.copy()
    pressed.export = bundle.export.then(STEP, **config.model_dump())
    return pressed
