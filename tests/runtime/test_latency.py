"""Timing is fair: the same texts, in turn; a ratio's interval holds what is true."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from tasks.evaluation.config import EvaluationConfig
from tasks.runtime.latency import Latency, measure, ratio
from tasks.training.progress import Silent

CONFIG = EvaluationConfig(rounds=5, texts_per_round=6, batches_per_round=2, batch_size=4, warmup=2)
TEXTS = [f"text {number}" for number in range(40)]


class Sleeper:
    """Takes a known time a text, and remembers what it was asked."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, tuple[str, ...]]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        self.log.append((self.name, tuple(texts)))
        time.sleep(self.seconds * len(texts))
        return np.zeros((len(texts), 2), dtype=np.float32)


class Bar(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.total, self.steps, self.stopped = 0, 0, False

    def start(self, description: str, total: int) -> None:
        self.total = total

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        self.steps += steps

    def stop(self) -> None:
        self.stopped = True


def asked(log: list[tuple[str, tuple[str, ...]]], name: str) -> list[tuple[str, ...]]:
    """What one contender was asked after the warm-up."""
    return [texts for who, texts in log if who == name][CONFIG.warmup + 1 :]


def test_all_answer_the_same_texts_in_changing_order() -> None:
    log: list[tuple[str, tuple[str, ...]]] = []
    names = ["one", "two", "three"]
    bar = Bar()
    found = measure({n: Sleeper(n, 0.0, log) for n in names}, TEXTS, CONFIG, bar)
    assert asked(log, "one") == asked(log, "two") == asked(log, "three")
    # a round: one untimed text, 6 single texts, 2 batches
    assert len(asked(log, "one")) == CONFIG.rounds * (1 + 6 + 2)
    timed = [who for who, _ in log[3 * (CONFIG.warmup + 1) :]]
    turns = [who for who, before in zip(timed, [None, *timed], strict=False) if who != before]
    assert len(set(turns[:3])) == 3
    assert turns != turns[:3] * (len(turns) // 3)
    assert (bar.total, bar.steps, bar.stopped) == (CONFIG.rounds, CONFIG.rounds, True)
    assert len(found["one"].rounds_ms) == len(found["one"].rounds_throughput) == CONFIG.rounds


def test_texts_and_order_follow_the_seed() -> None:
    logs: list[list[tuple[str, tuple[str, ...]]]] = []
    for seed in (1, 1, 2):
        log: list[tuple[str, tuple[str, ...]]] = []
        config = CONFIG.model_copy(update={"seed": seed})
        measure({n: Sleeper(n, 0.0, log) for n in "ab"}, TEXTS, config, Silent())
        logs.append(log)
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_times_are_those_of_the_whole_call() -> None:
    log: list[tuple[str, tuple[str, ...]]] = []
    found = measure({"a": Sleeper("a", 0.004, log)}, TEXTS, CONFIG, Silent())["a"]
    assert 4.0 <= found.p50_ms < 40
    assert found.p95_ms >= found.p50_ms
    assert 25 < found.throughput <= 250  # 4 ms a text
    assert found.noise >= 0


def test_the_bar_ends_when_a_model_fails() -> None:
    class Broken:
        def __init__(self) -> None:
            self.calls = 0

        def probabilities(self, texts: Sequence[str]) -> np.ndarray:
            self.calls += 1
            if self.calls > 5:
                raise RuntimeError("broken")
            return np.zeros((len(texts), 2), dtype=np.float32)

    bar = Bar()
    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": Broken()}, TEXTS, CONFIG, bar)
    assert bar.stopped


def test_a_ratio_of_equals_is_one_and_of_unequals_is_found() -> None:
    random = np.random.default_rng(0)
    drift = 1 + 0.5 * random.random(12)  # of the machine: hits both alike
    slow = drift * 6 * random.normal(1, 0.02, 12)
    fast = drift * 2 * random.normal(1, 0.02, 12)
    found = ratio(slow, fast, EvaluationConfig())
    assert found.lower < 3 < found.upper
    assert found.upper - found.lower < 1.0
    same = ratio(slow, slow, EvaluationConfig())
    assert (same.value, same.lower, same.upper) == (1, 1, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    config = EvaluationConfig(resamples=400)
    hits = 0
    for _ in range(200):
        slow, fast = 2 * random.normal(1, 0.05, 12), random.normal(1, 0.05, 12)
        interval = ratio(slow, fast, config)
        hits += interval.lower <= 2 <= interval.upper
    assert 170 <= hits <= 200


def test_noise_is_the_spread_of_rounds() -> None:
    calm = Latency(2.0, 2.0, 1.0, [2.0] * 5, [1.0] * 5)
    wild = Latency(2.0, 2.0, 1.0, [1.0, 1.5, 2.0, 2.5, 3.0], [1.0] * 5)
    assert calm.noise == 0
    assert wild.noise == pytest.approx(0.25)
