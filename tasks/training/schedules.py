"""How the learning rate moves over a training.

It rises linearly over the warm-up, to 1; from there, with x the share of the steps after the
warm-up that are done, and e the share of the rate that is left at the end, it is

    constant     1
    linear       e + (1 − e)·(1 − x)
    polynomial   e + (1 − e)·(1 − x)^p
    cosine       e + (1 − e)·(1 + cos πx)/2     (Loshchilov and Hutter 2017, "SGDR", eq. 5)
    exponential  e^x
    plateau      times f, but not below e, whenever n evaluations have brought no lower validation
                 loss than the lowest by a part in 10,000
"""

import math
from collections.abc import Callable, Sequence

from tasks.training.config import TrainingConfig

Factor = Callable[[int, Sequence[float]], float]
"""(steps done, validation losses so far) → what the learning rate of the next step is times."""
_GAIN = 1e-4
"""A loss is lower where it is by this share at least, as in torch's `ReduceLROnPlateau`."""


def factor(config: TrainingConfig, total: int) -> Factor:
    """Return how the rate moves over `total` steps; the first step has no rate of 0."""
    rising = max(1, round(total * config.warmup))
    end = config.lowest_factor

    def at(step: int, losses: Sequence[float]) -> float:
        if step < rising:
            return (step + 1) / rising
        left = max(0.0, (total - step) / max(1, total - rising))
        match config.schedule:
            case "constant":
                return 1.0
            case "linear":
                return end + (1 - end) * left
            case "polynomial":
                return float(end + (1 - end) * left**config.schedule_power)
            case "cosine":
                return end + (1 - end) * (1 - math.cos(math.pi * left)) / 2
            case "exponential":
                return float(end ** (1 - left))
            case "plateau":
                return plateau(losses, config.plateau_factor, config.plateau_patience, end)

    return at


def plateau(losses: Sequence[float], factor: float, patience: int, lowest: float) -> float:
    """Return what `losses` of evaluations in a row have brought the rate down to, from 1."""
    rate, best, waited = 1.0, math.inf, 0
    for loss in losses:
        if loss < best * (1 - _GAIN):
            best, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            rate, waited = max(rate * factor, lowest), 0
    return rate
