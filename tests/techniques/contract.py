"""What each technique's own test says of it, for the contract test that runs over all of them.

The test module of `pruning.magnitude` is `tests/techniques/test_pruning_magnitude.py`; it defines
`CONTRACT`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tasks.bundle import Bundle
from tests import tiny

Settings = Mapping[str, Any]
SHORT = {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3}
"""A training of eight steps on the tiny examples."""
LONG = {"epochs": 16, "batch_size": 16, "learning_rate": 1e-2, "patience": 100}
"""Long enough to come near a teacher."""


@dataclass(frozen=True)
class Contract:
    """Examples of settings, and how the technique proves that it did something."""

    good: Sequence[Settings]
    bad: Sequence[tuple[Settings, str]]
    """Settings that must be refused, and a pattern of the reason."""
    prove: Callable[[Bundle, Bundle, Any], None]
    """Asserts the effect, given the bundle before, the one after, and the settings."""
    changes_answers: bool = True
    refuses: Mapping[str, str] = field(default_factory=dict)
    """`albert` or `lstm` → a pattern of the reason why it cannot treat one, under some settings at
    the least."""


def zeros(bundle: Bundle, names: Sequence[str]) -> tuple[int, int]:
    """Return how many of the weights in the parameters `names` are zero, and how many there are."""
    weights = [bundle.model.get_parameter(name) for name in names]
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def same_weights(one: Bundle, other: Bundle) -> bool:
    """Tell whether two models have bit-equal parameters of the same names."""
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def softmax(values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities (texts, labels) of logits softened by the temperature."""
    powers = np.exp((values - values.max(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return KL(teacher ∥ student) of each text, from logits (texts, labels)."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return (p * (np.log(p) - np.log(q))).sum(1)


def accuracy(bundle: Bundle) -> float:
    """Return the share of right answers on tiny texts that no training has seen."""
    held_out = tiny.examples(128, seed=11)
    return float((tiny.answers(bundle, held_out.texts).argmax(1) == held_out.labels).mean())
