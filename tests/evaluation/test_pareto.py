"""Which variants are worth a choice, and which is chosen."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.evaluation.pareto import Candidate, Objective, choose, front

GOOD = Candidate(validation_accuracy=0.86, p50_ms=2.0, throughput=600, size_bytes=23)
FAST = Candidate(validation_accuracy=0.85, p50_ms=0.8, throughput=1500, size_bytes=20)
SMALL = Candidate(validation_accuracy=0.84, p50_ms=1.2, throughput=1200, size_bytes=12)
POOR = Candidate(validation_accuracy=0.83, p50_ms=1.3, throughput=1100, size_bytes=15)
ALL = {"good": GOOD, "fast": FAST, "small": SMALL, "poor": POOR}


def test_the_front_holds_what_nothing_dominates() -> None:
    assert front(ALL) == {"good", "fast", "small"}
    assert front({}) == set()
    assert front({"a": GOOD, "b": GOOD}) == {"a", "b"}


def test_every_one_off_the_front_is_dominated_by_one_on_it() -> None:
    random = np.random.default_rng(0)
    drawn = {
        str(i): Candidate(*map(float, random.integers(1, 6, size=3)), int(random.integers(1, 6)))
        for i in range(60)
    }
    best = front(drawn)
    assert 0 < len(best) < 60
    for name, candidate in drawn.items():
        dominated = any(drawn[other].dominates(candidate) for other in best)
        assert dominated == (name not in best)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("latency", "fast"), ("throughput", "fast"), ("size", "small"), ("accuracy", "good")],
)
def test_the_objective_chooses_from_the_front(objective: Objective, expected: str) -> None:
    assert choose(ALL, objective) == expected
    assert choose(dict(reversed(ALL.items())), objective) == expected


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_within_noise_accuracy_decides(objective: Objective) -> None:
    close = replace(FAST, validation_accuracy=0.858, p50_ms=0.82, throughput=1460)
    apart = replace(FAST, validation_accuracy=0.858, p50_ms=0.90, throughput=1300)
    assert choose({"fast": FAST, "close": close}, objective) == "close"
    assert choose({"fast": FAST, "apart": apart}, objective) == "fast"


def test_accuracy_is_exact() -> None:
    better = replace(GOOD, validation_accuracy=0.861, p50_ms=9.0)
    assert choose({"good": GOOD, "better": better}, "accuracy") == "better"


def test_none_of_none() -> None:
    assert choose({}, "latency") is None
