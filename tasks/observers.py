"""Which range of a tensor to map to integers, from batches that are seen once and not kept.

An observer is shown batch after batch and holds either two numbers or one histogram of 4,096 bins,
however many values there are.

* `minmax`: the least and the greatest value seen.
* `percentile`: the range that leaves out a given share of the values, half of it on either side.
* `entropy`: the threshold T that loses least information, KL(P ∥ Q), where P is the histogram of
  magnitudes with everything above T counted at T, and Q is P's shape in as many levels as the
  integers have (Migacz 2017, "8-bit Inference with TensorRT").
* `mse`: the threshold T of the least mean squared error between the values and what their integers
  stand for, clipping counted (Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for
  Efficient Inference", section 3).

A threshold gives the range [max(least, −T), min(greatest, T)], so that a tensor that lies on one
side of zero spends no integers on the other.
"""

import math
from typing import Literal, Protocol

import torch

from tasks.affine import Grid, from_range

Method = Literal["minmax", "percentile", "entropy", "mse"]
_SIDE = 2048
"""Bins on either side of zero."""
_CANDIDATES = 128
"""Thresholds that are tried, evenly spaced up to the greatest magnitude."""
_BLOCK = 16
"""Thresholds that are tried at a time, so that trying takes little memory."""


class Observer(Protocol):
    """Sees a tensor's values in batches, and says which range to map."""

    def observe(self, values: torch.Tensor) -> None:
        """Take in a batch of any shape; its values must be finite."""
        ...

    def range(self) -> tuple[float, float]:
        """Return the least and the greatest value to map; something must have been observed."""
        ...


def observer(method: Method, grid: Grid, percentile: float = 99.99) -> Observer:
    """Return a fresh observer; `percentile` is the share in percent that `percentile` keeps."""
    if method == "minmax":
        return MinMax()
    if method == "percentile":
        return Percentile(percentile)
    return Entropy(grid) if method == "entropy" else MeanSquaredError(grid)


class MinMax:
    """The least and the greatest value seen."""

    def __init__(self) -> None:
        self.least, self.greatest = math.inf, -math.inf

    def observe(self, values: torch.Tensor) -> None:
        """Take in a batch."""
        if values.numel() > 0:
            least, greatest = torch.aminmax(values.detach())
            self.least = min(self.least, float(least))
            self.greatest = max(self.greatest, float(greatest))

    def range(self) -> tuple[float, float]:
        """Return the least and the greatest value."""
        assert self.least <= self.greatest, "nothing was observed"
        return self.least, self.greatest


class Histogram(MinMax):
    """Counts of values in even bins over [−reach, reach].

    A value beyond the reach doubles it: bins are merged in pairs, so that no count is lost and
    none lies further than a bin's width from where it belongs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reach = 0.0
        self.counts = torch.zeros(2 * _SIDE, dtype=torch.float64)

    def observe(self, values: torch.Tensor) -> None:
        """Take in a batch."""
        super().observe(values)
        self._reach(max(-self.least, self.greatest))
        flat = values.detach().flatten().double()
        if self.reach > 0:
            index = torch.floor((flat / self.reach + 1) * _SIDE).clamp(0, 2 * _SIDE - 1)
        else:  # nothing but zeros so far
            index = torch.full_like(flat, _SIDE)
        self.counts += torch.bincount(index.long(), minlength=2 * _SIDE).cpu()

    def _reach(self, magnitude: float) -> None:
        if self.reach == 0:
            self.reach = max(magnitude, 0.0)
        while self.reach < magnitude:
            self.reach *= 2
            half = self.counts.view(_SIDE, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_SIDE // 2 : _SIDE // 2 + _SIDE] = half

    @property
    def edges(self) -> torch.Tensor:
        """The bins' borders, float64 (bins + 1,)."""
        return torch.linspace(-self.reach, self.reach, 2 * _SIDE + 1, dtype=torch.float64)

    @property
    def centres(self) -> torch.Tensor:
        """The bins' middles, float64 (bins,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def magnitudes(self) -> torch.Tensor:
        """Return the counts of absolute values in even bins over [0, reach]."""
        return self.counts[_SIDE:] + self.counts[:_SIDE].flip(0)

    def clipped(self, threshold: float) -> tuple[float, float]:
        """Return the range seen, cut off at ± `threshold`."""
        return max(self.least, -threshold), min(self.greatest, threshold)


class Percentile(Histogram):
    """The range that holds `percentile` percent of the values."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        assert 0 < percentile <= 100
        self.cut = (1 - percentile / 100) / 2

    def range(self) -> tuple[float, float]:
        """Return the percentiles on either side, exact to a bin's width."""
        least, greatest = super().range()
        share = torch.cumsum(self.counts, 0) / self.counts.sum()
        first = int((share > self.cut).nonzero()[0])
        last = int((share >= 1 - self.cut).nonzero()[0])
        edges = self.edges
        return max(least, float(edges[first])), min(greatest, float(edges[last + 1]))


class Entropy(Histogram):
    """The threshold that loses least information."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.levels = (grid.high - grid.low + 1) // 2
        """Of the magnitudes, one sign of the integers."""

    def range(self) -> tuple[float, float]:
        """Return the range up to the threshold of the least KL(P ∥ Q)."""
        super().range()
        counts = self.magnitudes()
        step = max(1, _SIDE // _CANDIDATES)
        best, threshold = math.inf, self.reach
        for end in range(_SIDE, self.levels - 1, -step):  # of equal ones, the widest
            value = divergence(counts, end, self.levels)
            if value < best:
                best, threshold = value, self.reach * end / _SIDE
        return self.clipped(threshold)


def divergence(counts: torch.Tensor, end: int, levels: int) -> float:
    """Return KL(P ∥ Q) of cutting magnitudes off after `end` bins and keeping `levels` values.

    P is the first `end` counts, what lies beyond added to the last of them. Q is the first `end`
    counts, split into `levels` runs of bins, each run's sum spread evenly over its bins that are
    not empty. Infinite where Q has nothing at a place where P has something.
    """
    kept = counts[:end]
    reference = kept.clone()
    reference[-1] += counts[end:].sum()
    run = torch.arange(end) * levels // end
    filled = (kept > 0).double()
    sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, run, kept)
    sizes = torch.zeros(levels, dtype=torch.float64).index_add_(0, run, filled)
    coarse = (sums / sizes.clamp_min(1))[run] * filled
    if coarse.sum() == 0:
        return math.inf
    p, q = reference / reference.sum(), coarse / coarse.sum()
    there = p > 0
    return float((p[there] * torch.log(p[there] / q[there])).sum())


class MeanSquaredError(Histogram):
    """The threshold of the least mean squared error."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def range(self) -> tuple[float, float]:
        """Return the range up to the threshold of the least squared error."""
        super().range()
        shares = torch.arange(1, _CANDIDATES + 1, dtype=torch.float64) / _CANDIDATES
        ranges = [self.clipped(float(share) * self.reach) for share in shares]
        errors = torch.cat(
            [self._errors(ranges[i : i + _BLOCK]) for i in range(0, len(ranges), _BLOCK)]
        )
        return ranges[int(errors.argmin())]

    def _errors(self, ranges: list[tuple[float, float]]) -> torch.Tensor:
        """Return the squared error that each of the ranges makes, summed over the histogram."""
        lower, upper = torch.tensor(ranges, dtype=torch.float64).unbind(1)
        values = self.centres.expand(len(ranges), -1)
        rounded = from_range(lower, upper, self.grid, axis=0).rounded(values)
        return ((rounded.double() - values) ** 2 * self.counts).sum(1)
