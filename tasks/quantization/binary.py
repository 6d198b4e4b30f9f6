"""Binary weights: one bit each, and one scale for an output channel.

    Ŵ = α·sign(W),    α = mean |W| of the channel

which is the α and the signs of least squared error (Rastegari et al. 2016, "XNOR-Net", section
3.1). Direct: the weights are rounded as they are. Trained: latent weights in float are trained with
Ŵ in their place, the gradient passed straight through and the weights clipped (Courbariaux et al.
2015, "BinaryConnect"), by setting with gradients of one bit too; `tasks/few_levels.py` has the
formulas. Embeddings and head stay in float unless a setting says otherwise.

Checkpoint and export hold the bits, eight in a byte. They save space and no time: no runtime here
multiplies by bits, so that the weights are unpacked when the model is loaded.

Applies to every model with linear layers whose matrices are not shared; recurrent layers are
refused. A pruned weight becomes ±α: take `quantization.ternary` to keep zeros.
"""

from tasks import few_levels
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.few_levels import FewLevelsConfig
from tasks.technique import Context


def _reads_data(config: FewLevelsConfig) -> bool:
    return config.train


READS_DATA = _reads_data
LAST = True
EFFECT = "packed"
LEAVES = ("packed matrices",)
REFUSES = ("recurrent layers", "shared matrices", "pruned weights")


class Config(FewLevelsConfig):
    """Settings of binary weights."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with its matrices in one bit a weight.

    Raises TechniqueError where the model was pruned weight by weight, its plan quantizes already, a
    layer is recurrent, matrices are shared, or training fails.
    """
    if bundle.sparse:
        raise TechniqueError(
            f"`{bundle.sparse[0]}` has pruned weights, and a binary weight cannot be zero: "
            "use `quantization.ternary`, or leave the pruning out"
        )
    return few_levels.press(bundle, config, context, few_levels.binary, bits=1)
