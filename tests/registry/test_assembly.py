import pytest

from tasks.registry import assembly
from tasks.runtime.latency import Latency


def test_noise_is_told_by_the_middle_half_of_the_rounds():
    # medians 3, 1, 5, 2 and 40: quartiles 2 and 5
    rounds = [[3.0, 3.0, 9.0], [1.0, 1.0, 1.0], [5.0, 0.0, 6.0], [2.0, 2.0, 2.0], [40.0, 40.0, 7.0]]
    latency = Latency(3.0, 9.0, 100.0, rounds, [100.0] * 5)
    assert assembly._noise(latency) == pytest.approx((5 - 2) / 2 / 3)
