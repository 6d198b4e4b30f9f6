"""Direct integers: weights rounded once training is over, with no data and no calibration.

    q = clamp(round(w / scale) + zero_point),    w ≈ scale · (q − zero_point)

The scale comes from the weights' own range, one a matrix or one an output channel
(`tasks/affine.py` gives both maps; Jacob et al. 2018, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", section 2). Texts that write
round(w × scale + bias) mean by scale the number of steps in one, 1 / step.

The model's weights become the values that the integers stand for. The export stores the integers,
a quarter of the bytes, with a DequantizeLinear behind each matrix: read as it stands, it answers as
PyTorch does. ONNX Runtime keeps matrices of linear layers in integers in memory, too, and rounds
activations block by block to multiply them; that is about as fast as floats. Zeros stay zeros.

Applies to every model with linear layers; recurrent layers are refused.
"""

import torch
from torch import nn

from tasks.affine import Kind, grid
from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.quantizable import matrices, refuse_quantized, weight_map
from tasks.technique import Context

READS_DATA = False
LAST = True
REFUSES = ("recurrent layers",)
STEP = "quantize_weights"

EFFECT = "packed"


class Config(Frozen):
    """Settings of direct integers."""

    weight_type: Kind = "int8"
    """Signed or unsigned integers."""
    symmetric: bool = True
    """The range is the same on both sides of zero; False: from the least to the greatest weight."""
    per_channel: bool = True
    """One scale an output channel (of an embedding table: a column); False: one a matrix."""
    embeddings: bool = True
    """Round the embedding tables too."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with rounded weights, and with their packing in its export plan.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, or a weight is
    not a finite number.
    """
    refuse_quantized(bundle)
    matrices(bundle.model)
    pressed = bundle.copy()
    integers = grid(config.weight_type, symmetric=config.symmetric)
    for module in matrices(pressed.model).values():
        if config.embeddings or not isinstance(module, nn.Embedding):
            weight = module.get_parameter("weight")
            found = weight_map(module, integers, per_channel=config.per_channel)
            with torch.no_grad():
                weight.copy_(found.rounded(weight))
    pressed.export = bundle.export.then(STEP, **config.model_dump())
    return pressed
