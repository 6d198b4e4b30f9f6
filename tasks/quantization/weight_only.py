"""Weights in 4 or 8 bits by groups, activations in float.

    q = clamp(round(w / s) + z, 0, 2ᵇ − 1),    ŵ = s·(q − z)    with s and z for each group

A group is a few neighbouring weights of a row. By setting each weight is rounded to nearest, or,
column after column, the error of each is made up for by those not yet rounded (GPTQ: Frantar et al.
2023), on what training texts give the layer. `tasks/weight_groups.py` has the formulas. Nothing is
trained.

Checkpoint and export hold the packed integers. The export multiplies by them as they lie
(`MatMulNBits`), in float: this is for size, and for GPUs, where memory is what takes time. On a CPU
it makes nothing faster.

Applies to every model with linear layers whose matrices are not shared; recurrent layers are
refused.
"""

from typing import Literal

from pydantic import Field

from tasks import packing, weight_groups
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.quantizable import refuse_quantized
from tasks.technique import Context
from tasks.weight_groups import Grid

LAST = True
EFFECT = "packed"
LEAVES = ("packed matrices",)
REFUSES = ("recurrent layers", "shared matrices")


class Config(Frozen):
    """Settings of weight-only quantization."""

    bits: Literal[4, 8] = 4
    """Bits a weight."""
    group: Literal[16, 32, 64, 128, 256] = 32
    """Neighbouring weights that share a scale; fewer are more exact and larger."""
    symmetric: bool = False
    """The range is the same on both sides of zero; False: from the least to the greatest weight."""
    method: Literal["gptq", "nearest"] = "gptq"
    """Let the weights that are left make up for each error, or round each by itself."""
    calibration_examples: int = Field(default=128, ge=1)
    """Training texts that layers are watched on; for gptq."""
    damping: float = Field(default=0.01, gt=0, le=100)
    """What is added to the Hessian's diagonal, as a share of its mean; for gptq."""
    embeddings: bool = True
    """Pack the embedding tables too; they are rounded to nearest."""
    head: bool = False
    """Pack the pooler and the classifier too."""


def _reads_data(config: Config) -> bool:
    return config.method == "gptq"


READS_DATA = _reads_data


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with its matrices in few bits.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, matrices are
    shared, or there is no text to watch layers on.
    """
    refuse_quantized(bundle)
    names = packing.chosen(bundle, embeddings=config.embeddings, head=config.head)
    examples = None
    if config.method == "gptq":
        if len(context.train) == 0:
            raise TechniqueError(
                "there are no training texts to watch layers on: give more data, or set "
                "`method: nearest`"
            )
        examples = context.train.sample(config.calibration_examples, context.seed)
    pressed = bundle.copy()
    pressed.model.to(context.device).eval()
    grid = Grid(config.bits, config.group, config.symmetric)
    weight_groups.compress(
        pressed, dict.fromkeys(names, grid), examples, config.damping, context.progress
    )
    pressed.model.to("cpu")
    return pressed
