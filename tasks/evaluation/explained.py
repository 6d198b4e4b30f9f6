"""Where a model's accuracy went: by label, by other text, by example, and by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.evaluation.quality import Quality

Way = Literal["baseline", "float"]
"""How a part is undone: the baseline's own in its place, or out of integers into float."""


@dataclass(frozen=True)
class Changed:
    """One text that the baseline gets right and the variant does not."""

    text: str
    label: str
    answer: str
    before: float
    """Probability that the baseline gives the true label."""
    after: float
    """Probability that the variant gives it."""


@dataclass(frozen=True)
class Undone:
    """What is regained by undoing one part of a variant alone; negative where it does harm."""

    part: str
    way: Way
    points: float
    """Of accuracy."""
    loss: float
    """Mean cross-entropy, in nats."""


@dataclass(frozen=True)
class Undoing:
    """A variant with one part undone at a time, on validation texts, in PyTorch."""

    num_texts: int = 0
    lost_points: float = 0.0
    """Accuracy that the variant loses on these texts against the baseline, in points."""
    lost: float = 0.0
    """Mean cross-entropy that it has more than the baseline there, in nats."""
    parts: tuple[Undone, ...] = ()
    """Those first that regain most cross-entropy."""
    notes: tuple[str, ...] = ()
    """What could not be undone, or is the baseline's already, in words."""


def recall_change(before: Quality, after: Quality) -> dict[str, float]:
    """Return label → change of its recall in points; negative is a loss."""
    return {label: (after.recall[label] - before.recall[label]) * 100 for label in before.recall}


def lost_elsewhere(before: Mapping[str, Quality], after: Mapping[str, Quality]) -> dict[str, float]:
    """Return name → points of accuracy lost on those texts against the baseline's own."""
    return {name: (before[name].accuracy - after[name].accuracy) * 100 for name in after}


def most_changed(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    texts: Sequence[str],
    names: Sequence[str],
    count: int,
) -> tuple[Changed, ...]:
    """Return up to `count` texts that became wrong, those first whose true label lost most.

    `before` and `after` are probabilities (texts, labels), `labels` int (texts,).
    """
    rows = np.arange(len(labels))
    worse = (before.argmax(axis=1) == labels) & (after.argmax(axis=1) != labels)
    fall = before[rows, labels] - after[rows, labels]
    order = sorted(np.flatnonzero(worse).tolist(), key=lambda row: -fall[row])
    return tuple(
        Changed(
            text=texts[row],
            label=names[labels[row]],
            answer=names[after[row].argmax()],
            before=float(before[row, labels[row]]),
            after=float(after[row, labels[row]]),
        )
        for row in order[:count]
    )
