"""Latency and throughput of several models at once, text in and probabilities out.

In every round every contender answers the same texts, in an order that changes from round to
round, so that a drift of the machine hits all alike; a ratio's interval comes from the rounds.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tasks.evaluation.config import EvaluationConfig
from tasks.training.progress import Progress


class Contender(Protocol):
    """A model that answers texts."""

    def probabilities(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Return float32 (texts, labels), asked in batches of `batch_size`."""
        ...


@dataclass(frozen=True)
class Latency:
    """What one contender took."""

    p50_ms: float
    """Median of one text at a time (batch 1)."""
    p95_ms: float
    throughput: float
    """Texts per second in batches, the median round's."""
    rounds_ms: list[list[float]]
    """Of each round, every text's time at batch 1."""
    rounds_throughput: list[float]
    """Texts per second of each round."""


@dataclass(frozen=True)
class Ratio:
    """How many times something is larger, with its two-sided 95% interval."""

    value: float
    lower: float
    upper: float


def measure(
    contenders: Mapping[str, Contender],
    texts: Sequence[str],
    config: EvaluationConfig,
    progress: Progress,
) -> dict[str, Latency]:
    """Return contender → latency over texts drawn from `texts` by the seed.

    Times the whole way of a text: tokenizer, model, probabilities.
    """
    assert texts
    random = np.random.default_rng(config.seed)
    for contender in contenders.values():
        for number in range(config.warmup):
            _seconds(contender, [texts[number % len(texts)]])
        _seconds(contender, _draw(random, texts, config.batch_size))
    singles: dict[str, list[list[float]]] = {name: [] for name in contenders}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    progress.start("measuring", config.rounds)
    try:
        for _ in range(config.rounds):
            alone = _draw(random, texts, config.texts_per_round)
            batches = [
                _draw(random, texts, config.batch_size) for _ in range(config.batches_per_round)
            ]
            for name in random.permutation(list(contenders)).tolist():
                times, speed = _round(contenders[name], alone, batches)
                singles[name].append(times)
                speeds[name].append(speed)
            progress.advance(1)
    finally:
        progress.stop()
    return {name: _summary(singles[name], speeds[name]) for name in contenders}


def ratio(
    slower: Sequence[Sequence[float]], faster: Sequence[Sequence[float]], config: EvaluationConfig
) -> Ratio:
    """Return p50(slower) / p50(faster) over the times of paired rounds, with its interval.

    Both are (rounds, texts). Percentile bootstrap over rounds (Efron and Tibshirani 1993, chapter
    13): rounds are drawn with replacement, for both contenders alike, and their times pooled.
    """
    first, second = np.asarray(slower), np.asarray(faster)
    assert first.shape == second.shape
    random = np.random.default_rng(config.seed)
    drawn = random.integers(len(first), size=(config.resamples, len(first)))
    values = np.median(first[drawn], axis=(1, 2)) / np.median(second[drawn], axis=(1, 2))
    lower, upper = np.quantile(values, [0.025, 0.975])
    return Ratio(float(np.median(first) / np.median(second)), float(lower), float(upper))


def _draw(random: np.random.Generator, texts: Sequence[str], count: int) -> list[str]:
    return [texts[i] for i in random.integers(len(texts), size=count)]


def _round(
    contender: Contender, alone: Sequence[str], batches: Sequence[Sequence[str]]
) -> tuple[list[float], float]:
    """Return milliseconds of each text alone, and texts per second in batches."""
    _seconds(contender, [alone[0]])  # the caches were another contender's
    gc.disable()
    try:
        times = [_seconds(contender, [text]) * 1000 for text in alone]
        batched = sum(_seconds(contender, batch) for batch in batches)
    finally:
        gc.enable()
    return times, sum(len(batch) for batch in batches) / batched


def _seconds(contender: Contender, texts: Sequence[str]) -> float:
    begin = time.perf_counter()
    contender.probabilities(texts, len(texts))
    return time.perf_counter() - begin


def _summary(singles: list[list[float]], speeds: list[float]) -> Latency:
    return Latency(
        p50_ms=float(np.median(singles)),
        p95_ms=float(np.quantile(singles, 0.95)),
        throughput=float(np.median(speeds)),
        rounds_ms=singles,
        rounds_throughput=speeds,
    )
