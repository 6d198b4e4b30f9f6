"""Cut texts at the shortest length that keeps a given share of the training texts whole.

    L = min { l : |{texts of at most l tokens}| ≥ share · |texts| }

The cost of a text grows with its tokens, in attention with their square (Vaswani et al. 2017,
table 1), and a batch is padded to its longest: so the few longest texts cost most. A text longer
than L is cut off at L.

Applies to every model. The weights stay as they are: what changes is where the tokenizer stops, in
training and in serving alike. Texts of L tokens and fewer are answered as before, at the same cost.
"""

import math

import numpy as np
from pydantic import Field

from tasks.bundle import Bundle, whole_texts
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.technique import Context
from tasks.training.batches import Examples

_LEAST = 4
"""Tokens that a text is never cut below, as in the settings of the baseline."""

EFFECT = "length"
LEAVES = ("shortened texts",)
NOTE = "structure.sequence_length"


class Config(Frozen):
    """How many texts stay whole."""

    share: float = Field(default=0.99, gt=0, le=1)
    """Share of the training texts that are not cut off; 1: the length of the longest."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with a smaller `max_length`.

    Raises TechniqueError where there are no texts, or where the length that the share needs is not
    below the present one.
    """
    if len(context.train) == 0:
        raise TechniqueError("there are no training texts to take the length from: give more data")
    found = lengths(bundle, context.train)
    shortest = max(length_for(found, config.share), _LEAST)
    if shortest >= bundle.max_length:
        raise TechniqueError(
            f"to keep {config.share:.1%} of the training texts whole takes {shortest} tokens, and "
            f"the model reads {bundle.max_length} already: lower `share`"
        )
    pressed = bundle.copy()
    pressed.max_length = shortest
    whole = float((found <= shortest).mean())
    pressed.notes = {
        **bundle.notes,
        NOTE: f"{shortest} tokens keep {whole:.1%} of the training texts whole",
    }
    return pressed


def lengths(bundle: Bundle, examples: Examples) -> np.ndarray:
    """Return how many tokens each text has, start and end tokens among them (int64)."""
    encoded = whole_texts(bundle.tokenizer).encode_batch_fast(list(examples.texts))
    return np.array([len(e.ids) for e in encoded], dtype=np.int64)


def length_for(found: np.ndarray, share: float) -> int:
    """Return the smallest length that at least `share` of the lengths `found` do not exceed."""
    wanted = math.ceil(share * len(found) - 1e-9)  # 0.7 · 10 is a little above 7 in binary
    return int(np.sort(found)[max(wanted, 1) - 1])
