"""The paired bound against resampling written out, the exact test against scipy."""

import time

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.paired import loss, mean_loss


def answered(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which texts two models get right, shuffled alike."""
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    order = np.random.default_rng(0).permutation(len(one))
    return np.array(one)[order], np.array(other)[order]


def test_the_bound_is_that_of_resampled_texts() -> None:
    one, other = answered(830, 45, 25, 100)
    found = loss(one, other, 5000, seed=3)
    random = np.random.default_rng(4)
    difference = one.astype(int) - other.astype(int)
    drawn = random.integers(len(one), size=(5000, len(one)))
    reference = np.quantile(difference[drawn].mean(axis=1) * 100, 0.95)
    assert found.points == pytest.approx(2.0)
    assert (found.only_first, found.only_second) == (45, 25)
    assert found.bound_points == pytest.approx(reference, abs=0.1)
    normal = 2.0 + 1.645 * difference.std() / np.sqrt(len(one)) * 100
    assert found.bound_points == pytest.approx(normal, abs=0.1)


def test_the_bound_holds_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(11)
    shares = [0.80, 0.06, 0.04, 0.10]  # truly 2 points lost
    held = 0
    for seed in range(300):
        one, other = answered(*random.multinomial(800, shares).tolist())
        held += loss(one, other, 400, seed).bound_points >= 2.0
    assert 0.91 <= held / 300 <= 0.985


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (7, 7), (30, 12), (3, 19), (400, 1)])
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    one, other = answered(500, first, second, 60)
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert loss(one, other, 200, seed=0).mcnemar_p == pytest.approx(expected, rel=1e-9)


def test_equal_models_lose_nothing_and_a_better_one_gains() -> None:
    one, other = answered(400, 0, 0, 100)
    same = loss(one, other, 500, seed=0)
    assert (same.points, same.bound_points) == (0, 0)
    one, other = answered(400, 5, 60, 35)
    assert loss(one, other, 500, seed=0).bound_points < 0


def test_it_is_repeatable_and_quick() -> None:
    one, other = answered(2000, 150, 120, 230)
    begin = time.perf_counter()
    found = loss(one, other, 5000, seed=5)
    assert time.perf_counter() - begin < 0.3
    assert loss(one, other, 5000, seed=5) == found


def test_bounds_of_a_mean_hold_for_other_seeds_and_other_texts() -> None:
    """Each training is worse by an amount of its own, each text by one of its own."""
    random = np.random.default_rng(5)
    held = {"lower": 0, "upper": 0}
    for seed in range(200):
        by_training = random.normal(0.02, 0.004, size=(6, 1))
        hard = random.random(600) < 0.3
        wrong = 0.5 * hard + by_training * (~hard) / 0.7
        second = random.random((6, 600)) >= wrong
        first = random.random((6, 600)) >= 0.5 * hard
        found = mean_loss(first, second, 300, seed)
        assert found.points == pytest.approx((first.mean() - second.mean()) * 100)
        held["lower"] += found.lower <= 2.0
        held["upper"] += found.upper >= 2.0
    assert held["lower"] / 200 >= 0.93
    assert held["upper"] / 200 >= 0.93


def test_one_training_has_the_bounds_of_its_texts() -> None:
    one, other = answered(830, 45, 25, 100)
    whole = mean_loss(one[None], other[None], 5000, seed=3)
    assert whole.points == pytest.approx(2.0)
    assert whole.upper == pytest.approx(loss(one, other, 5000, seed=3).bound_points, abs=0.1)
    assert whole.lower == pytest.approx(4.0 - whole.upper, abs=0.15)
