"""Figures of quality, against scikit-learn and against definitions written out."""

import numpy as np
import pytest
from sklearn import metrics

from tasks.evaluation.quality import agreement, quality


def drawn(num: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=num)
    logits = random.normal(size=(num, classes)) + 1.2 * np.eye(classes)[labels]
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_figures_are_scikit_learns(classes: int) -> None:
    probabilities, labels = drawn(700, classes, seed=classes)
    names = [f"class {i}" for i in range(classes)]
    answers = probabilities.argmax(axis=1)
    found = quality(probabilities, labels, names)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    assert found.num_texts == 700
    assert found.loss == pytest.approx(metrics.log_loss(labels, exact), rel=1e-5)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, answers))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, answers, average="macro"))
    recalls = metrics.recall_score(labels, answers, average=None)
    assert list(found.recall) == names
    np.testing.assert_allclose(list(found.recall.values()), recalls)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, answers))


def test_calibration_error_is_its_definition() -> None:
    probabilities, labels = drawn(900, 3, seed=9)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = quality(probabilities, labels, ["a", "b", "c"]).ece
    assert found == pytest.approx(expected, abs=1e-5)
    assert found > 0.01


def test_a_sure_and_right_model_has_no_error() -> None:
    labels = np.array([0, 1, 1])
    found = quality(np.eye(2, dtype=np.float32)[labels], labels, ["a", "b"])
    assert (found.accuracy, found.ece, found.loss, found.macro_f1) == (1, 0, 0, 1)


def test_a_sure_and_wrong_model_has_a_finite_loss() -> None:
    found = quality(np.eye(2, dtype=np.float32), np.array([1, 0]), ["a", "b"])
    assert found.accuracy == 0
    assert found.ece == 1
    assert 20 < found.loss < 50


def test_a_label_that_no_text_has_keeps_its_place() -> None:
    labels = np.array([0, 0, 2])
    answers = np.array([0, 2, 2])
    found = quality(np.eye(3, dtype=np.float32)[answers], labels, ["a", "b", "c"])
    assert found.confusion == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert found.recall == {"a": 0.5, "b": 0.0, "c": 1.0}
    reference = metrics.f1_score(
        labels, answers, labels=[0, 1, 2], average="macro", zero_division=0
    )
    assert found.macro_f1 == pytest.approx(reference)


def test_agreement_counts_labels_and_measures_distance() -> None:
    first = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    second = np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    found = agreement(first, second)
    assert found.labels == pytest.approx(3 / 4)
    assert found.distance == pytest.approx((0.2 + 0.2 + 0 + 0) / 4, abs=1e-7)
    assert agreement(first, first).distance == 0
    assert agreement(np.eye(3), np.roll(np.eye(3), 1, axis=0)).distance == 1
