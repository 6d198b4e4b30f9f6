"""The knapsack: against all choices tried one by one."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import knapsack

_OPTION = st.tuples(st.integers(1, 60).map(float), st.integers(0, 30).map(float))


@given(
    st.lists(st.lists(_OPTION, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(1, 200)
)
def test_no_other_choice_within_the_budget_loses_less(items, budget):
    def totals(places):
        chosen = [options[place] for options, place in zip(items, places, strict=True)]
        return sum(c for c, _ in chosen), sum(loss for _, loss in chosen)

    all_choices = [totals(p) for p in product(*(range(len(options)) for options in items))]
    within = [loss for cost, loss in all_choices if cost <= budget]
    found = knapsack.choose(items, float(budget))
    if found is None:
        # costs are rounded up, by a ten-thousandth of the budget each
        assert not [c for c, _ in all_choices if c <= budget * (1 - len(items) / 10_000)]
        return
    cost, loss = totals(found)
    assert cost <= budget
    roomy = [loss for cost, loss in all_choices if cost <= budget * (1 - len(items) / 10_000)]
    assert min(within) <= loss <= min([*roomy, loss])


def test_what_costs_nothing_fits_any_budget():
    assert knapsack.choose([[(0.0, 5.0), (2.0, 1.0)], [(1.0, 0.0)]], 1.0) == [0, 0]
    assert knapsack.choose([[(2.0, 0.0)]], 1.0) is None
    assert knapsack.choose([[(1.0, 2.0), (0.5, 2.0)]], 1.0) == [1]  # the cheaper of equals


def test_many_layers_are_chosen_for_at_once():
    items = [[(0.164, 0.01 * (i % 7)), (0.289, 0.001 * (i % 5)), (1.0, 0.0)] for i in range(60)]
    found = knapsack.choose(items, 60 * 0.25)
    assert found is not None
    assert sum(items[i][p][0] for i, p in enumerate(found)) == pytest.approx(15, abs=0.2)
