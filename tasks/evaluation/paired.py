"""Two models on the same texts: what one loses against the other, and how sure that is."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedLoss:
    """Accuracy lost, in points (per cent of texts); negative is a gain."""

    points: float
    bound_points: float
    """One-sided upper 95% bound of the loss."""
    mcnemar_p: float
    """Exact two-sided McNemar test; reported, never a gate: not significant is not equal."""
    only_first: int
    """Texts that the first model alone gets right."""
    only_second: int


@dataclass(frozen=True)
class MeanLoss:
    """Accuracy lost on the mean of several trainings of each model, in points."""

    points: float
    lower: float
    upper: float
    """One-sided 95% bounds, each."""


def loss(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> PairedLoss:
    """Return what `second` loses against `first`, given which texts each gets right (bool).

    Percentile bootstrap over texts (Efron and Tibshirani 1993, chapter 13). A text's difference
    is -1, 0 or 1, so a resample of n texts is one multinomial draw of three counts.
    """
    assert first.dtype == second.dtype == bool
    assert first.shape == second.shape
    assert len(first) > 0
    num = len(first)
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    shares = np.array([only_first, only_second, num - only_first - only_second]) / num
    drawn = np.random.default_rng(seed).multinomial(num, shares, size=resamples)
    losses = (drawn[:, 0] - drawn[:, 1]) / num * 100
    return PairedLoss(
        points=(only_first - only_second) / num * 100,
        bound_points=float(np.quantile(losses, 0.95)),
        mcnemar_p=_mcnemar(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
    )


def mean_loss(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> MeanLoss:
    """Return what `second` loses against `first`, given which texts each gets right.

    Both are bool (trainings, texts); row i of both comes from seed i. Trainings and texts are drawn
    anew, each on its own (Owen 2007, "The pigeonhole bootstrap"): the bounds hold for other seeds
    as well as for other texts.
    """
    assert first.dtype == second.dtype == bool
    assert first.shape == second.shape
    assert first.size > 0
    num_trainings, num_texts = first.shape
    lost = first.astype(np.float64) - second.astype(np.float64)
    random = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for at in range(resamples):
        trainings = random.integers(num_trainings, size=num_trainings)
        texts = random.integers(num_texts, size=num_texts)
        drawn[at] = lost[trainings].mean(axis=0)[texts].mean() * 100
    lower, upper = np.quantile(drawn, [0.05, 0.95])
    return MeanLoss(float(lost.mean() * 100), float(lower), float(upper))


def _mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value: a fair coin for each text that one alone gets right.

    McNemar 1947; the exact form is the binomial test of Fagerland, Lydersen and Laake 2013, eq. 4.
    """
    num, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(num, k) for k in range(fewer + 1))
    return float(min(1, 2 * tail / 2**num))
