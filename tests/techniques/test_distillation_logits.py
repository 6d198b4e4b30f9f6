"""Logit distillation: the loss, the lesson, fresh students."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks import model_parts
from tasks.distillation import logits
from tasks.errors import TechniqueError
from tasks.teaching import SoftAndHardLoss, lesson
from tasks.training.batches import UNLABELLED
from tasks.training.config import TrainingConfig
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, divergence, softmax


def _prove(before, after, config):
    texts = tiny.examples(32, seed=9).texts
    teacher = tiny.WiseTeacher.answers(texts)
    far = divergence(teacher, tiny.answers(before, texts)).mean()
    near = divergence(teacher, tiny.answers(after, texts)).mean()
    if config.student is None:
        assert near < far / 2
    else:
        assert after.num_parameters() < before.num_parameters()
        parts = model_parts.layers(after.model)
        assert (len(parts), parts[0].num_heads, parts[0].num_neurons) == (1, 2, 8)


CONTRACT = Contract(
    good=(
        {"alpha": 1.0, "training": LONG},
        {"student": {"layers": 1, "hidden": 8, "heads": 2, "ffn": 8}, "training": SHORT},
    ),
    bad=(
        ({"temperature": 0}, "greater than 0"),
        ({"alpha": 1.1}, "less than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"teacher": ""}, "at least 1 character"),
        ({"student": {}}, "a student needs"),
        ({"student": {"hidden": 10, "heads": 4}}, "10 is not a multiple of `heads` 4"),
        ({"student": {"layers": 0}}, "greater than or equal to 1"),
    ),
    prove=_prove,
)

_LOGITS = arrays.arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32))


@given(
    teacher=_LOGITS, student=_LOGITS,
    temperature=st.floats(0.5, 8), alpha=st.floats(0.01, 1),
)  # fmt: skip
def test_the_loss_is_hintons(teacher, student, temperature, alpha):
    labels = np.array([0, 2, UNLABELLED, 1])
    batch = {"labels": torch.from_numpy(labels), "teacher_logits": torch.from_numpy(teacher)}
    output = SimpleNamespace(logits=torch.from_numpy(student))
    ours = SoftAndHardLoss(temperature, alpha)(output, batch)
    soft = temperature**2 * divergence(teacher.astype(float), student.astype(float), temperature)
    right = softmax(student.astype(float), 1)[np.arange(4), labels.clip(0)]
    hard = np.where(labels == UNLABELLED, 0, -np.log(right))
    assert float(ours) == pytest.approx(
        (alpha * soft + (1 - alpha) * hard).mean(), rel=1e-3, abs=1e-5
    )


def test_a_batch_without_labels_has_a_finite_loss():
    batch = {"labels": torch.full((2,), UNLABELLED), "teacher_logits": torch.zeros(2, 2)}
    output = SimpleNamespace(logits=torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert 0 < float(SoftAndHardLoss(2.0, 0.5)(output, batch)) < 10


def test_a_lesson_holds_labelled_and_unlabelled_texts_with_the_teachers_answers(tmp_path):
    teacher = tiny.WiseTeacher()
    context = tiny.context(tmp_path, teacher)
    training = TrainingConfig(max_examples=20, max_transfer=5)
    examples, rest = lesson(context, tiny.LABELS, "baseline", training, transfer=True)
    assert rest == TrainingConfig(max_transfer=5)
    assert len(examples) == 25
    assert (examples.labels == UNLABELLED).sum() == 5
    known = dict(zip(context.train.texts, context.train.labels, strict=True))
    for text, label in zip(examples.texts[:20], examples.labels[:20], strict=True):
        assert known[text] == label
    assert set(examples.texts[20:]) <= set(context.transfer.texts)
    expected = teacher.answers(examples.texts)
    assert np.array_equal(examples.columns["teacher_logits"], expected)
    assert teacher.asked == 2  # once for each kind of text
    alone, _ = lesson(context, tiny.LABELS, "baseline", training, transfer=False)
    assert len(alone) == 20


def test_limited_examples_are_chosen_by_the_seed():
    every = tiny.examples(64)
    first, again, other = (every.sample(10, seed).texts for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10
    assert every.sample(None, 1) is every
    assert every.sample(64, 1) is every


def test_a_teacher_with_other_labels_is_refused_before_any_work(tmp_path):
    teacher = tiny.WiseTeacher(labels=("positive", "negative"))
    context = tiny.context(tmp_path, teacher)
    with pytest.raises(TechniqueError, match=r"knows the labels positive, negative, not negative"):
        logits.apply(tiny.tiny_bert(), logits.Config(), context)
    assert teacher.asked == 0


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_a_fresh_student_has_the_widths_asked_for(kind, tmp_path):
    bundle = tiny.tiny(kind)
    context = tiny.context(tmp_path)
    widths = logits.StudentConfig(layers=2, hidden=8, ffn=12, heads=4)
    student = logits.fresh(bundle, widths, context)
    parts = model_parts.layers(student.model)
    assert [(p.num_heads, p.head_size, p.num_neurons) for p in parts] == [(4, 2, 12)] * 2
    assert tiny.answers(student, ["the film"]).shape == (1, 2)
    assert bundle.model.config.num_hidden_layers == 3
    state = student.model.state_dict()
    again = logits.fresh(bundle, widths, context).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ({"layers": 3}, "not fewer than the node before"),
        ({"layers": 5}, "not fewer than the node before"),
        ({"hidden": 6}, "6 is not a multiple of its 4 heads"),
    ],
)
def test_a_student_that_cannot_be_is_refused(widths, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        logits.fresh(tiny.tiny_bert(), logits.StudentConfig(**widths), tiny.context(tmp_path))
