"""What a training did so far, and what it did in the end."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FitResult:
    """What a training did, over all its resumptions."""

    steps: int
    epochs: float
    seconds: float
    """Wall time, without what was done again after a kill."""
    examples_per_second: float
    """While stepping: evaluations and checkpoints left out."""
    best_validation_loss: float
    best_validation_accuracy: float
    """Both of the evaluation whose weights were kept."""
    history: tuple[dict[str, float], ...]
    """One entry an evaluation: step, training_loss (mean since the entry before),
    validation_loss, validation_accuracy."""
    stopped: Literal["end", "patience"]


@dataclass
class State:
    """What must survive a kill, besides weights, optimizer and random numbers."""

    step: int = 0
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    done: bool = False
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    num_examples: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def examples_per_second(self) -> float:
        """Speed of the steps alone."""
        return self.num_examples / max(self.step_seconds, 1e-9)

    @property
    def running_loss(self) -> float:
        """Mean loss of the steps since the last evaluation."""
        return sum(self.losses) / len(self.losses)

    def enter(self, entry: dict[str, float]) -> bool:
        """Add an evaluation to the history; return whether it is the best so far."""
        gained = not self.history or merit(entry) > max(map(merit, self.history))
        self.history.append(entry)
        self.losses = []
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        return gained

    def result(self, total: int, steps_per_epoch: int, keep: Literal["best", "last"]) -> FitResult:
        """Return what was done of `total` steps."""
        chosen = max(self.history, key=merit) if keep == "best" else self.history[-1]
        return FitResult(
            steps=self.step,
            epochs=self.step / steps_per_epoch,
            seconds=self.seconds,
            examples_per_second=self.examples_per_second,
            best_validation_loss=chosen["validation_loss"],
            best_validation_accuracy=chosen["validation_accuracy"],
            history=tuple(self.history),
            stopped="end" if self.step >= total else "patience",
        )


def merit(entry: dict[str, float]) -> tuple[float, float]:
    """Return what evaluations are ranked by: accuracy, then loss, on validation data."""
    return entry["validation_accuracy"], -entry["validation_loss"]
