"""How the learning rate moves over a training."""

from collections.abc import Callable


def linear(total: int, warmup: float) -> Callable[[int], float]:
    """Return step → factor: from 0 up to 1 over the `warmup` share, then down to 0 at `total`."""
    rising = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (total - step) / max(1, total - rising))

    return factor
