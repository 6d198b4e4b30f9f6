"""Logit distillation: the loss, how it moves, the lesson, what the teacher adds to labels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks import model_parts
from tasks.distillation import logits
from tasks.errors import TechniqueError
from tasks.teaching import MovingLoss, SoftAndHardLoss, SoftConfig, lesson
from tasks.training.batches import UNLABELLED, unlabelled
from tasks.training.config import TrainingConfig
from tasks.training.progress import Silent
from tests import tiny
from tests.techniques.contract import (
    LONG,
    SHORT,
    Contract,
    accuracy,
    divergence,
    same_weights,
    softmax,
)


def _prove(before, after, config):
    texts = tiny.examples(32, seed=9).texts
    teacher = tiny.WiseTeacher.answers(texts)
    far = divergence(teacher, tiny.answers(before, texts)).mean()
    near = divergence(teacher, tiny.answers(after, texts)).mean()
    if config.student is None:
        assert near < far / 2
    else:
        asked = config.student
        assert after.num_parameters() < before.num_parameters()
        parts = model_parts.layers(after.model)
        widths = (len(parts), parts[0].num_heads, parts[0].num_neurons)
        assert widths == (asked.layers, asked.heads, asked.ffn)


CONTRACT = Contract(
    good=(
        {"alpha": 1.0, "training": LONG},
        {
            "temperature": 4, "temperature_end": 1, "alpha": 1.0, "alpha_end": 0.2,
            "schedule": "cosine", "loss": "cross_entropy", "training": LONG,
        },
        {"student": {"layers": 1, "hidden": 8, "heads": 2, "ffn": 8}, "training": SHORT},
        {
            "student": {"layers": 2, "hidden": 12, "heads": 2, "ffn": 8, "init": "important"},
            "training": SHORT,
        },
    ),
    bad=(
        ({"temperature": 0}, "greater than 0"),
        ({"temperature_end": 0}, "greater than 0"),
        ({"alpha": 1.1}, "less than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha_end": -0.1}, "greater than or equal to 0"),
        ({"schedule": "cosine"}, "needs `temperature_end` or `alpha_end`"),
        ({"alpha_end": 0, "schedule": "exponential"}, "never reaches `alpha_end` 0"),
        ({"loss": "mse"}, "'kl' or 'cross_entropy'"),
        ({"teacher": ""}, "at least 1 character"),
        ({"student": {}}, "a student needs"),
        ({"student": {"init": "first"}}, "a student needs"),
        ({"student": {"hidden": 10, "heads": 4}}, "10 is not a multiple of `heads` 4"),
        ({"student": {"layers": 0}}, "greater than or equal to 1"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "no width `ffn`|cannot be cut"},
    prove=_prove,
)  # fmt: skip

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


@given(teacher=_LOGITS, student=_LOGITS, temperature=st.floats(0.5, 8))
def test_the_cross_entropy_form_is_torchs_and_has_the_gradient_of_the_kl_form(
    teacher, student, temperature
):
    batch = {
        "labels": torch.full((4,), UNLABELLED),
        "teacher_logits": torch.from_numpy(teacher),
    }
    losses, gradients = [], []
    for form in ("cross_entropy", "kl"):
        logits = torch.from_numpy(student).requires_grad_()
        loss = SoftAndHardLoss(temperature, 1.0, form)(SimpleNamespace(logits=logits), batch)
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, logits)[0])
    soft = torch.from_numpy(softmax(teacher.astype(float), temperature))
    expected = F.cross_entropy(torch.from_numpy(student).double() / temperature, soft)
    entropy = -(soft * soft.clamp_min(1e-300).log()).sum(1).mean()
    assert losses[0] == pytest.approx(temperature**2 * float(expected), rel=1e-4, abs=1e-5)
    assert losses[1] == pytest.approx(
        temperature**2 * float(expected - entropy), rel=1e-3, abs=1e-3
    )
    assert torch.allclose(*gradients, atol=1e-5)


def test_the_loss_of_two_labels_worked_by_hand():
    batch = {"labels": torch.tensor([1]), "teacher_logits": torch.tensor([[0.0, 2 * np.log(3)]])}
    output = SimpleNamespace(logits=torch.zeros(1, 2))
    # at T = 2 the teacher says 1/4, 3/4 and the student 1/2, 1/2
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert float(SoftAndHardLoss(2.0, 0.5)(output, batch)) == pytest.approx(
        0.5 * 4 * kl + 0.5 * np.log(2)
    )
    assert float(SoftAndHardLoss(2.0, 1.0, "cross_entropy")(output, batch)) == pytest.approx(
        4 * np.log(2)
    )


@pytest.mark.parametrize(
    ("schedule", "halfway"),
    [(None, (5.0, 0.5)), ("linear", (5.0, 0.5)), ("cosine", (5.0, 0.5)),
     ("exponential", (3.0, 0.3))],
)  # fmt: skip
def test_temperature_and_mixing_move_from_start_to_end(schedule, halfway):
    alpha = (0.1, 0.9) if schedule == "exponential" else (1.0, 0.0)
    loss = MovingLoss(
        SoftConfig(
            temperature=9, temperature_end=1, alpha=alpha[0], alpha_end=alpha[1],
            schedule=schedule,
        )
    )  # fmt: skip
    seen = []
    for step in range(5):
        loss.move(step, 5)
        seen.append((loss.temperature, loss.alpha))
    assert seen[0] == pytest.approx((9, alpha[0]))
    assert seen[2] == pytest.approx(halfway)
    assert seen[4] == pytest.approx((1, alpha[1]))
    if schedule == "cosine":  # slow at both ends
        assert seen[1][1] == pytest.approx(np.cos(np.pi / 8) ** 2)


def test_what_has_no_end_stays():
    loss = MovingLoss(SoftConfig(temperature=3, alpha=0.4, alpha_end=0.8))
    loss.move(9, 10)
    assert (loss.temperature, loss.alpha) == (3, pytest.approx(0.8))
    loss.move(0, 1)  # a training of one step
    assert loss.alpha == pytest.approx(0.4)


class _Fall(Exception):
    pass


class _Faller(Silent):
    def __init__(self, at):
        self.left = at

    def advance(self, steps, *, loss=None, rate=None):
        self.left -= steps
        if self.left <= 0:
            raise _Fall


def test_a_training_that_fell_goes_on_with_the_schedule_where_it_was(tmp_path):
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "checkpoint_seconds": 1e-6}
    config = logits.Config(temperature=8, temperature_end=1, alpha_end=0.1, training=training)
    whole, fallen = (tiny.context(tmp_path / n, tiny.WiseTeacher()) for n in ("one", "two"))
    expected = logits.apply(tiny.tiny_bert(), config, whole)
    with pytest.raises(_Fall):
        logits.apply(tiny.tiny_bert(), config, replace(fallen, progress=_Faller(7)))
    assert same_weights(logits.apply(tiny.tiny_bert(), config, fallen), expected)


def test_an_lstm_learns_from_the_teacher(tmp_path):
    student = {"lstm": {"embedding": 8, "hidden": 6, "dropout": 0}}
    context = replace(
        tiny.context(tmp_path, tiny.WiseTeacher()),
        train=tiny.examples(4, seed=3),
        transfer=unlabelled(tiny.examples(96, seed=4).texts),
    )
    taught, alone = (
        logits.apply(
            tiny.tiny_bert(),
            logits.Config(alpha=alpha, transfer=transfer, student=student, training=LONG),
            context,
        )
        for alpha, transfer in ((0.9, True), (1e-9, False))
    )
    assert accuracy(taught) > accuracy(alone) + 0.2


def test_the_teacher_teaches_what_a_few_labels_do_not(tmp_path):
    context = replace(
        tiny.context(tmp_path, tiny.WiseTeacher()),
        train=tiny.examples(4, seed=3),
        transfer=unlabelled(tiny.examples(96, seed=4).texts),
    )
    taught, alone = (
        logits.apply(
            tiny.tiny_bert(), logits.Config(alpha=alpha, transfer=transfer, training=LONG), context
        )
        for alpha, transfer in ((0.9, True), (1e-9, False))
    )
    assert accuracy(taught) > 0.95
    assert accuracy(alone) < 0.8


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
