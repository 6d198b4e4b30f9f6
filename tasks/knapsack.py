"""One choice for each of several things, of least total loss within a budget."""

from collections.abc import Sequence
from math import ceil

_STEPS = 10_000
"""Into how many steps the budget is divided; costs are rounded up to whole ones."""
Option = tuple[float, float]
"""Cost and loss."""


def choose(items: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Return the place of the option chosen for each item; None where the budget is too small.

    Multiple-choice knapsack by dynamic programming over the sets of options not yet dominated
    (Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", section 11.5). Costs are rounded up
    to a ten-thousandth of the budget: the budget is held, and the choice is the best one but for
    that. Of equal losses the cheaper choice is taken.
    """
    unit = budget / _STEPS
    states: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for options in items:
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (loss, places) in states.items():
            for place, (cost, more) in enumerate(options):
                total = spent + (ceil(cost / unit - 1e-9) if cost > 0 else 0)
                if total > _STEPS:
                    continue
                found = (loss + more, (*places, place))
                if total not in reached or found[0] < reached[total][0]:
                    reached[total] = found
        states = _undominated(reached)
    return list(min(states.values())[1]) if states else None


def _undominated(
    reached: dict[int, tuple[float, tuple[int, ...]]],
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Leave out what costs more than another choice and loses no less."""
    kept, best = {}, float("inf")
    for total in sorted(reached):
        if reached[total][0] < best:
            best = reached[total][0]
            kept[total] = reached[total]
    return kept
