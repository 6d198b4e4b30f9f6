"""Observers: against numpy, scipy, ONNX Runtime's collector, and search over the values."""

import contextlib
import io
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime.quantization import calibrate

from tasks import observers
from tasks.affine import Grid, from_range, grid
from tasks.observers import Histogram, MinMax, Percentile, divergence, observer

GRID = grid("uint8", symmetric=False)
unhurried = settings(max_examples=50, deadline=None)  # on a busy machine
METHODS = ("minmax", "percentile", "entropy", "mse")


def long_tailed(count: int = 50_000, seed: int = 0) -> np.ndarray:
    """Values whose few largest lie far out, as those of activations do."""
    return np.random.default_rng(seed).standard_t(3, size=count).astype(np.float32)


def seen(found: observers.Observer, values: np.ndarray, batches: int = 1) -> observers.Observer:
    for part in np.array_split(values, batches):
        found.observe(torch.from_numpy(part))
    return found


_BATCHES = st.lists(
    arrays.arrays(
        np.float32,
        st.integers(1, 30),
        elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    ),
    min_size=1,
    max_size=5,
)


@unhurried
@given(batches=_BATCHES)
def test_min_and_max_are_those_of_all_batches(batches):
    found = MinMax()
    for batch in batches:
        found.observe(torch.from_numpy(batch))
    together = np.concatenate(batches)
    assert found.range() == (together.min(), together.max())


@unhurried
@given(batches=_BATCHES)
def test_a_histogram_loses_no_value_and_moves_none_beyond_its_bin(batches):
    found = Histogram()
    for batch in batches:
        found.observe(torch.from_numpy(batch))
    together = np.sort(np.concatenate(batches))
    assert found.counts.sum() == len(together)
    # the counted values, in order, next to the real ones: a bin's width apart at most
    width = 2 * found.reach / len(found.counts)
    counted = np.repeat(found.centres.numpy(), found.counts.long().numpy())
    assert np.abs(counted - together).max() <= width * 0.5001
    assert found.reach <= 2 * np.abs(together).max()
    assert len(found.counts) == 4096


def test_a_histogram_is_as_large_however_much_it_saw():
    found = seen(Histogram(), long_tailed(200_000), batches=100)
    assert found.counts.shape == (4096,)
    assert found.counts.sum() == 200_000


@pytest.mark.parametrize("method", METHODS)
def test_batches_give_nearly_what_all_at_once_gives(method):
    values = long_tailed()
    values = values[np.argsort(np.abs(values))]  # the largest last: the reach doubles often
    once = seen(observer(method, GRID, 99.9), values).range()
    often = seen(observer(method, GRID, 99.9), values, batches=20).range()
    # coarser bins move the least of a flat curve
    assert often == pytest.approx(once, rel=0.5 if method == "entropy" else 0.05)
    if method == "minmax":
        assert often == once


@pytest.mark.parametrize("percentile", [99.99, 99, 90])
def test_percentiles_are_the_values_at_their_rank_to_a_bin(percentile):
    values = long_tailed()
    found = seen(Percentile(percentile), values, batches=5)
    lower, upper = found.range()
    beyond = (100 - percentile) / 200 * len(values)
    width = 2 * found.reach / 4096
    assert lower == pytest.approx(np.sort(values)[int(beyond)], abs=1.01 * width)
    assert upper == pytest.approx(np.sort(values)[-1 - int(beyond)], abs=1.01 * width)
    inside = ((values >= lower) & (values <= upper)).mean()
    assert inside >= percentile / 100
    whole = seen(Percentile(100), values).range()
    assert whole == (values.min(), values.max())


def test_percentiles_are_onnx_runtimes_to_a_bin():
    values = long_tailed()
    collector = calibrate.HistogramCollector("percentile", False, 4096, 128, 99.9, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
        expected = collector.compute_collection_result()["x"][:2]
    found = seen(Percentile(99.9), values)
    assert found.range() == pytest.approx(
        [float(e) for e in expected], abs=2.01 * 2 * found.reach / 4096
    )


def slow_divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """The definition, bin by bin, with scipy's entropy."""
    reference = counts[:end].astype(float)
    reference[-1] += counts[end:].sum()
    coarse = np.zeros(end)
    for level in range(levels):
        bins = [b for b in range(end) if b * levels // end == level]
        filled = [b for b in bins if counts[b] > 0]
        for b in filled:
            coarse[b] = counts[bins].sum() / len(filled)
    return float(scipy.stats.entropy(reference, coarse)) if coarse.sum() else math.inf


@unhurried
@given(
    counts=arrays.arrays(np.float64, 24, elements=st.integers(0, 9).map(float)),
    end=st.integers(4, 24),
    levels=st.integers(1, 4),
)
def test_the_divergence_is_scipys(counts, end, levels):
    if counts.sum() == 0:
        return
    found = divergence(torch.from_numpy(counts), end, levels)
    expected = slow_divergence(counts, end, levels)
    assert found == pytest.approx(expected, abs=1e-9)


def test_entropy_takes_the_threshold_of_the_least_divergence():
    values = np.concatenate([np.random.default_rng(1).normal(size=20_000), [30.0, -3.0]])
    found = seen(observer("entropy", GRID), values.astype(np.float32))
    counts = found.magnitudes().numpy()
    ends = range(2048, 127, -16)
    losses = [slow_divergence(counts, end, 128) for end in ends[:: len(ends) // 12]]
    lower, upper = found.range()
    assert upper < 10  # the one value far out is cut off
    chosen = slow_divergence(counts, round(upper / found.reach * 2048), 128)
    assert chosen <= min(losses) + 1e-9
    assert lower == -min(upper, np.abs(values.min()))


@pytest.mark.parametrize(("high", "gain"), [(255, 1), (15, 0.5)])
def test_squared_error_takes_the_threshold_that_a_search_over_the_values_finds(high, gain):
    values = long_tailed(20_000)
    few = Grid(0, high, symmetric=False)
    found = seen(observer("mse", few), values)

    def error(limits: tuple[float, float]) -> float:
        rounded = from_range(*limits, few).rounded(torch.from_numpy(values)).numpy()
        return float(((rounded - values) ** 2).mean())

    searched = min(
        error((max(values.min(), -t), min(values.max(), t)))
        for t in np.linspace(0.5, np.abs(values).max(), 300)
    )
    assert error(found.range()) <= 1.05 * searched
    assert error(found.range()) <= gain * error((values.min(), values.max()))


@pytest.mark.parametrize("method", METHODS)
def test_one_side_of_zero_spends_nothing_on_the_other(method):
    values = np.abs(long_tailed())
    lower, upper = seen(observer(method, GRID), values).range()
    assert lower >= 0
    assert 0 < upper <= values.max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_one_value_over_and_over_has_a_range(method, value):
    found = seen(observer(method, GRID), np.full(50, value, dtype=np.float32), batches=3)
    lower, upper = found.range()
    rounded = from_range(lower, upper, GRID).rounded(torch.tensor(value))
    assert float(rounded) == pytest.approx(value, abs=0.02)
