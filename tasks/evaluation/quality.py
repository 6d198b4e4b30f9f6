"""How good a classifier's probabilities are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 15
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Quality:
    """Figures over one set of labelled texts."""

    num_texts: int
    loss: float
    """Mean negative log-likelihood, in nats."""
    accuracy: float
    macro_f1: float
    recall: dict[str, float]
    """Label → share of its texts that were found; 0 where there are none."""
    confusion: list[list[int]]
    """Row: true label, column: answer."""
    ece: float
    """Expected calibration error over 15 equal-width bins (Guo et al. 2017, eq. 3)."""


@dataclass(frozen=True)
class Agreement:
    """How alike two models' answers to the same texts are."""

    labels: float
    """Share of texts that get the same label."""
    distance: float
    """Mean total-variation distance of the probabilities, 0 to 1."""


def quality(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Quality:
    """Return the figures of `probabilities` (texts, labels) against `labels` int (texts,)."""
    assert len(labels) > 0
    answers = probabilities.argmax(axis=1)
    size = len(names)
    confusion = np.bincount(labels * size + answers, minlength=size * size).reshape(size, size)
    found = np.diag(confusion).astype(float)
    true, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    recall = np.divide(found, true, out=np.zeros(size), where=true > 0)
    f1 = np.divide(2 * found, true + answered, out=np.zeros(size), where=true + answered > 0)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Quality(
        num_texts=len(labels),
        loss=float(-np.log(np.maximum(likelihood, _SMALLEST)).mean()),
        accuracy=float((answers == labels).mean()),
        macro_f1=float(f1.mean()),
        recall={name: float(value) for name, value in zip(names, recall, strict=True)},
        confusion=[[int(n) for n in row] for row in confusion],
        ece=_calibration_error(probabilities.max(axis=1), answers == labels),
    )


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """Return how alike two arrays of probabilities (texts, labels) are."""
    same = first.argmax(axis=1) == second.argmax(axis=1)
    distance = np.abs(first.astype(np.float64) - second).sum(axis=1) / 2
    return Agreement(float(same.mean()), float(distance.mean()))


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    weight = np.bincount(bins, minlength=_BINS)
    gap = np.bincount(bins, correct, minlength=_BINS) - np.bincount(
        bins, confidence.astype(np.float64), minlength=_BINS
    )
    return float(np.abs(gap).sum() / weight.sum())
