"""The search of masks: against trying every mask, and examples worked by hand."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.mask_search import Kept, PartCost, fitted, least, rearranged, search


def _masks(count: int) -> list[tuple[int, ...]]:
    """Every way to keep `count` of three parts."""
    return list(combinations(range(3), count))


_SCORES = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    heads=st.tuples(_SCORES, _SCORES),
    neurons=st.tuples(_SCORES, _SCORES),
    head=st.integers(1, 12),  # whole costs: a mask that just fits does so in any sum of floats
    neuron=st.integers(1, 6),
    budget=st.integers(4, 108),
)
def test_no_mask_within_the_budget_is_worth_more(heads, neurons, head, neuron, budget):
    tensors = [[torch.tensor(s, dtype=torch.float64) for s in kind] for kind in (heads, neurons)]
    costs = PartCost(head, 1, head), PartCost(neuron, 1, neuron)
    spent = least([3, 3], [3, 3], *costs)
    assert spent == 2 * (head + neuron)
    assume(spent <= budget)
    kept = search(*tensors, *costs, budget)
    assert kept.cost(*costs) <= budget

    scores = [*tensors[0], *tensors[1]]
    # of each layer and number of parts only the best matters, so that all masks are soon tried
    top = [{n: float(max(s[list(m)].sum() for m in _masks(n))) for n in (1, 2, 3)} for s in scores]
    best = max(
        sum(layer[n] for layer, n in zip(top, numbers, strict=True))
        for numbers in product((1, 2, 3), repeat=4)
        if head * sum(numbers[:2]) + neuron * sum(numbers[2:]) <= budget
    )
    found = zip(scores, [*kept.heads, *kept.neurons], strict=True)
    assert sum(float(s[m].sum()) for s, m in found) == pytest.approx(best, abs=1e-6)


def test_groups_plateaus_and_what_stays_in_any_case():
    heads = [torch.tensor([5.0, 1.0, 1.0, 1.0]), torch.tensor([0.4, 0.3, 0.2, 0.1])]
    neurons = [torch.arange(8.0), torch.arange(8.0) / 100]
    one, few = PartCost(1.0, 1, 1.0), PartCost(3.0, 4, 0.5)
    # four neurons a layer are free, so both layers keep their best four
    assert least([4, 4], [8, 8], one, few, 2) == 2 * 1 + 2 * 3
    kept = search(heads, neurons, one, few, 8.0, 2)
    assert kept == Kept([[0], [0]], [[4, 5, 6, 7], [4, 5, 6, 7]])
    # two more pairs of neurons cost as much as two heads: worth 5 + 1 against 1 + 1
    kept = search(heads, neurons, one, few, 10.0, 2)
    assert kept == Kept([[0], [0]], [[*range(8)], [4, 5, 6, 7]])
    assert kept.cost(one, few) == 10
    every = search(heads, neurons, one, few, 14.0, 2, every_head=True)
    assert every == Kept([[*range(4)], [*range(4)]], [[4, 5, 6, 7], [4, 5, 6, 7]])
    assert least([4, 4], [8, 8], one, few, 2, every_head=True) == 14


def test_a_measured_cost_is_a_plateau_and_a_line():
    real = PartCost(2.0, 4, 0.25)
    found = fitted({count: real.of(count) for count in (2, 4, 6, 8, 10)})
    assert (found.base, found.free, found.each) == pytest.approx((2.0, 4, 0.25))
    # against numpy's own line where there is no plateau
    counts, costs = [1, 2, 3, 4], [1.1, 1.9, 3.2, 3.8]
    slope, intercept = np.polyfit(counts, costs, 1)
    found = fitted(dict(zip(counts, costs, strict=True)))
    assert found.free == 1
    assert (found.each, found.base) == pytest.approx((slope, intercept + slope))
    assert fitted({1: 3.0, 2: 2.0, 3: 1.0}) == PartCost(2.0, 3, 0.0)
    assert fitted({12: 3.0}) == PartCost(3.0, 12, 0.0)


def test_parts_that_stand_in_for_one_another_change_places():
    # By the diagonal, 1, 0.81, 0.09 and 0.1225, parts 2 and 3 go: (0.3 + 0.35)² = 0.4225. Part 3
    # back and part 1 away: (0.3 − 0.9)² = 0.36. Then part 2 back and part 0 away, which part 1
    # stands against: (1 − 0.9)² = 0.01.
    gradients = torch.tensor([[1.0, -0.9, 0.3, 0.35]])
    assert rearranged(gradients, [0, 1]) == [2, 3]
    # one part alone goes back for one that costs less, and for no other
    assert rearranged(gradients, [0, 1, 2]) == [0, 1, 3]
    assert rearranged(gradients, [0, 1, 3]) == [0, 1, 3]
    assert rearranged(gradients, [0, 1, 2, 3]) == [0, 1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), parts=st.integers(2, 9), data=st.data())
def test_rearranging_never_costs_more_and_keeps_the_number(seed, parts, data):
    gradients = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, parts)))
    kept = sorted(data.draw(st.sets(st.integers(0, parts - 1), min_size=1)))
    found = rearranged(gradients, kept)

    def cost(stays: list[int]) -> float:
        removed = [i for i in range(parts) if i not in stays]
        return float(gradients[:, removed].sum(1).square().sum())

    assert len(found) == len(kept)
    assert found == sorted(set(found))
    assert cost(found) <= cost(kept) * (1 + 1e-9)
    if len(kept) == parts - 1:  # with one removed, the greedy round is the best there is
        assert cost(found) == pytest.approx(min(float(g.square().sum()) for g in gradients.T))
