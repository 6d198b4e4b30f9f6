"""What is said of a loss adds up to it."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.evaluation.explained import lost_elsewhere, most_changed, recall_change
from tasks.evaluation.quality import quality

NAMES = ("bad", "good")
LABELS = np.array([0, 0, 1, 1])
BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]], dtype=np.float32)
AFTER = np.array([[0.4, 0.6], [0.49, 0.51], [0.2, 0.8], [0.1, 0.9]], dtype=np.float32)


def test_texts_that_became_wrong_come_worst_first() -> None:
    found = most_changed(BEFORE, AFTER, LABELS, ["a", "b", "c", "d"], NAMES, 5)
    assert [one.text for one in found] == ["a", "b"]
    assert (found[0].label, found[0].answer) == ("bad", "good")
    assert (found[0].before, found[0].after) == pytest.approx((0.9, 0.4))
    assert len(most_changed(BEFORE, AFTER, LABELS, ["a", "b", "c", "d"], NAMES, 1)) == 1


def test_recall_changes_by_label_in_points() -> None:
    before, after = quality(BEFORE, LABELS, NAMES), quality(AFTER, LABELS, NAMES)
    assert recall_change(before, after) == pytest.approx({"bad": -100.0, "good": 50.0})


def test_losses_elsewhere_are_against_the_baselines_own() -> None:
    one = quality(BEFORE, LABELS, NAMES)
    assert one.accuracy == pytest.approx(0.75)
    found = lost_elsewhere({"news": one}, {"news": replace(one, accuracy=0.70)})
    assert found == pytest.approx({"news": 5.0})
