"""Two models on the same texts: what one loses against the other, and how sure that is."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


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


def loss(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> PairedLoss:
    """Return what `second` loses against `first`, given which texts each gets right (bool).

    Percentile bootstrap over texts (Efron and Tibshirani 1993, chapter 13). A text's difference
    is -1, 0 or 1, so a resample of n texts is one multinomial draw of three counts.
    """
    assert first.shape == second.shape
    num = len(first)
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    shares = np.array([only_first, only_second, num - only_first - only_second]) / num
    drawn = np.random.default_rng(seed).multinomial(num, shares, size=resamples)
    losses = (drawn[:, 0] - drawn[:, 1]) / num * 100
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return PairedLoss(
        points=(only_first - only_second) / num * 100,
        bound_points=float(np.quantile(losses, 0.95)),
        mcnemar_p=float(p),
        only_first=only_first,
        only_second=only_second,
    )
