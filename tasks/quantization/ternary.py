"""Ternary weights: −α, 0 or +α, in two bits each, with one α for an output channel.

    Ŵ = α·sign(W) where |W| > Δ, else 0;    Δ = 0.7·mean |W|,    α = mean |W| where |W| > Δ

(Li and Liu 2016, "Ternary Weight Networks", eq. 3 to 6: α is the one of least squared error for the
weights that Δ leaves, Δ a rule of thumb.) Direct, or trained with latent weights in float
(`tasks/few_levels.py`). Embeddings and head stay in float unless a setting says otherwise.

Checkpoint and export hold two bits a weight, four in a byte. They save space and no time: the
weights are unpacked when the model is loaded.

Applies to every model with linear layers whose matrices are not shared; recurrent layers are
refused. Pruned weights stay zero.
"""

from tasks import few_levels
from tasks.bundle import Bundle
from tasks.few_levels import FewLevelsConfig
from tasks.technique import Context


def _reads_data(config: FewLevelsConfig) -> bool:
    return config.train


READS_DATA = _reads_data
LAST = True
EFFECT = "packed"
LEAVES = ("packed matrices",)
REFUSES = ("recurrent layers", "shared matrices")


class Config(FewLevelsConfig):
    """Settings of ternary weights."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with its matrices in two bits a weight.

    Raises TechniqueError where the model's plan quantizes already, a layer is recurrent, matrices
    are shared, or training fails.
    """
    return few_levels.press(bundle, config, context, few_levels.ternary, bits=2)
