"""Which variants are worth a choice, and which one the objective chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Objective = Literal["latency", "throughput", "size", "accuracy"]
_EQUAL = 0.03
"""Costs this much apart, as a share of the best, count as equal: timings are no more exact."""


@dataclass(frozen=True)
class Candidate:
    """What is ranked: accuracy on validation data, since test data judges and does not choose."""

    validation_accuracy: float
    p50_ms: float
    throughput: float
    size_bytes: int

    def dominates(self, other: "Candidate") -> bool:
        """Tell whether this is nowhere worse than the other, and somewhere better."""
        mine, theirs = self._costs(), other._costs()
        return all(m <= t for m, t in zip(mine, theirs, strict=True)) and mine != theirs

    def _costs(self) -> tuple[float, ...]:
        return -self.validation_accuracy, self.p50_ms, -self.throughput, self.size_bytes

    def cost(self, objective: Objective) -> float:
        """Return what the objective wants small."""
        return {
            "latency": self.p50_ms,
            "throughput": -self.throughput,
            "size": self.size_bytes,
            "accuracy": -self.validation_accuracy,
        }[objective]


def front(candidates: Mapping[str, Candidate]) -> set[str]:
    """Return the names of those that no other dominates."""
    return {
        name
        for name, one in candidates.items()
        if not any(other.dominates(one) for other in candidates.values())
    }


def choose(candidates: Mapping[str, Candidate], objective: Objective) -> str | None:
    """Return the front's best by the objective; None of none.

    Of those that are as good within noise, the one with the best accuracy on validation data.
    """
    names = sorted(front(candidates))
    if not names:
        return None
    costs = {name: candidates[name].cost(objective) for name in names}
    best = min(costs.values())
    # an accuracy is exact, and a cost of it is negative, as that of a throughput
    margin = 0.0 if objective == "accuracy" else _EQUAL * abs(best)
    near = [name for name in names if costs[name] <= best + margin]
    return min(near, key=lambda n: (-candidates[n].validation_accuracy, costs[n]))
