"""Timing is fair: the same texts, in turn; a ratio's interval holds what is true."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tasks.evaluation.config import EvaluationConfig
from tasks.runtime.latency import measure, ratio
from tasks.runtime.session import Session
from tasks.training.progress import Silent
from tests.registry import tiny_export

CONFIG = EvaluationConfig(rounds=5, texts_per_round=6, batches_per_round=2, batch_size=4, warmup=2)
TEXTS = [f"text {number}" for number in range(40)]


class Sleeper:
    """Takes a known time a text, and remembers what it was asked."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, tuple[str, ...]]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def probabilities(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        assert batch_size == len(texts)
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
    assert [len(times) for times in found["one"].rounds_ms] == [6] * CONFIG.rounds
    assert len(found["one"].rounds_throughput) == CONFIG.rounds


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


def test_the_bar_ends_when_a_model_fails() -> None:
    class Broken:
        def __init__(self) -> None:
            self.calls = 0

        def probabilities(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
            self.calls += 1
            if self.calls > 5:
                raise RuntimeError("broken")
            return np.zeros((len(texts), 2), dtype=np.float32)

    bar = Bar()
    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": Broken()}, TEXTS, CONFIG, bar)
    assert bar.stopped


class Sized:
    """An exported model that remembers the sizes of the batches that reach the runtime."""

    def __init__(self, folder: Path) -> None:
        self.session, self.sizes = Session(folder, 1), list[int]()
        real = self.session._logits
        self.session._logits = lambda rows: (self.sizes.append(len(rows)), real(rows))[1]  # type: ignore[method-assign]

    def probabilities(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        return self.session.probabilities(texts, batch_size)


def test_batches_are_as_large_as_the_settings_say(tmp_path: Path) -> None:
    contender = Sized(tiny_export.write(tmp_path / "export"))
    config = CONFIG.model_copy(update={"batch_size": 50})
    measure({"a": contender}, TEXTS, config, Silent())
    assert contender.sizes.count(50) == 1 + config.rounds * config.batches_per_round
    assert set(contender.sizes) == {1, 50}


def times(random: np.random.Generator, scale: float, spread: float = 0.02) -> np.ndarray:
    """12 rounds of 8 texts of unlike lengths; a round's spread hits all its texts."""
    lengths = random.uniform(0.5, 1.5, (12, 8))
    return scale * lengths * random.normal(1, spread, (12, 1))


def test_a_ratio_of_equals_is_one_and_of_unequals_is_found() -> None:
    random = np.random.default_rng(0)
    drift = 1 + 0.5 * random.random((12, 1))  # of the machine: hits both alike
    texts = times(random, 1)
    slow = drift * 6 * texts * random.normal(1, 0.02, texts.shape)
    fast = drift * 2 * texts * random.normal(1, 0.02, texts.shape)
    found = ratio(slow.tolist(), fast.tolist(), EvaluationConfig())
    assert found.lower < 3 < found.upper
    assert found.upper - found.lower < 1.0
    same = ratio(slow.tolist(), slow.tolist(), EvaluationConfig())
    assert (same.value, same.lower, same.upper) == (1, 1, 1)


def test_a_ratio_is_that_of_the_figures_beside_it() -> None:
    log: list[tuple[str, tuple[str, ...]]] = []
    contenders = {"slow": Sleeper("slow", 0.002, log), "fast": Sleeper("fast", 0.0, log)}
    found = measure(contenders, TEXTS, CONFIG, Silent())
    slow, fast = found["slow"], found["fast"]
    assert ratio(slow.rounds_ms, fast.rounds_ms, CONFIG).value == slow.p50_ms / fast.p50_ms
    # whose medians of rounds are 1 and 2, and whose median of all is 3 / 2
    uneven, even = [[1.0, 1.0, 9.0], [1.0, 9.0, 9.0], [1.0, 1.0, 3.0]], [[2.0, 2.0, 2.0]] * 3
    assert ratio(uneven, even, CONFIG).value == 0.5
    uneven[2][1] = 3.0
    assert ratio(uneven, even, CONFIG).value == 1.5


def test_the_interval_is_that_of_rounds_drawn_and_pooled() -> None:
    random = np.random.default_rng(5)
    slow, fast = times(random, 2, 0.2), times(random, 1, 0.2)
    config = EvaluationConfig(resamples=4000)
    found = ratio(slow.tolist(), fast.tolist(), config)
    values = []
    for _ in range(4000):  # one draw after the other, with the standard library's median
        rounds = random.integers(12, size=12)
        pooled = [[x for r in rounds for x in some[r]] for some in (slow, fast)]
        values.append(median(pooled[0]) / median(pooled[1]))
    lower, upper = np.quantile(values, [0.025, 0.975])
    assert found.lower == pytest.approx(lower, rel=0.02)
    assert found.upper == pytest.approx(upper, rel=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    config = EvaluationConfig(resamples=400)
    lengths = random.uniform(0.5, 1.5, 8)  # the same texts in every round
    hits = 0
    for _ in range(200):
        slow, fast = (n * lengths * random.normal(1, 0.05, (12, 1)) for n in (2, 1))
        interval = ratio(slow.tolist(), fast.tolist(), config)
        hits += interval.lower <= 2 <= interval.upper
    assert 170 <= hits <= 200
