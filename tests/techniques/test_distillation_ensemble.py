"""Several teachers: whose answer counts how much, and what is learned from all of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.distillation import ensemble
from tasks.distillation.ensemble import Config, weigh
from tasks.errors import TechniqueError
from tasks.teaching import EnsembleLoss, lesson
from tasks.training.batches import UNLABELLED, unlabelled
from tasks.training.config import TrainingConfig
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, divergence, softmax

TWO = ("baseline", "other")


def _prove(before, after, config):
    if config.student is not None:
        assert after.num_parameters() < before.num_parameters()
        return
    texts = tiny.examples(32, seed=9).texts
    teacher = tiny.WiseTeacher.answers(texts)
    far = divergence(teacher, tiny.answers(before, texts)).mean()
    assert divergence(teacher, tiny.answers(after, texts)).mean() < far / 2


CONTRACT = Contract(
    good=(
        {"teachers": TWO, "weights": [2, 1], "alpha": 1.0, "training": LONG},
        {"teachers": TWO, "by": "confidence", "alpha": 1.0, "alpha_end": 0.5, "training": LONG},
        {"teachers": TWO, "student": {"layers": 2, "init": "first"}, "training": SHORT},
    ),
    bad=(
        ({}, "Field required"),
        ({"teachers": ["baseline"]}, "at least 2 items"),
        ({"teachers": ["baseline", "baseline"]}, "names one twice"),
        ({"teachers": ["baseline", ""]}, "at least 1 character"),
        ({"teachers": TWO, "weights": [1]}, "1 `weights` for 2 teachers"),
        ({"teachers": TWO, "weights": [1, 0]}, "greater than 0"),
        ({"teachers": TWO, "by": "votes"}, "'weights' or 'confidence'"),
        ({"teachers": TWO, "sharpness": 0}, "greater than 0"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


def _logits(*shape):
    return arrays.arrays(np.float32, shape, elements=st.floats(-4, 4, width=32))


@given(
    teachers=_logits(4, 2, 3), student=_logits(4, 3),
    temperature=st.floats(0.5, 8), first=st.floats(0.1, 10), sharpness=st.floats(0.1, 50),
    by=st.sampled_from(["weights", "confidence"]),
)  # fmt: skip
def test_the_target_is_the_weighted_mean_of_the_distributions(
    teachers, student, temperature, first, sharpness, by
):
    config = Config(
        teachers=TWO, weights=(first, 1.0), by=by, sharpness=sharpness, alpha=1.0,
        temperature=temperature,
    )  # fmt: skip
    one, other = (softmax(teachers[:, k].astype(float)) for k in (0, 1))
    weights = np.tile([first, 1.0], (4, 1))
    if by == "confidence":
        weights = weights * np.stack([one.max(1), other.max(1)], axis=1) ** sharpness
    weights /= weights.sum(1, keepdims=True)
    assert np.allclose(weigh(torch.from_numpy(teachers), config).numpy(), weights, atol=1e-4)
    soft = [softmax(teachers[:, k].astype(float), temperature) for k in (0, 1)]
    mean = weights[:, :1] * soft[0] + weights[:, 1:] * soft[1]
    log_q = F.log_softmax(torch.from_numpy(student).double() / temperature, dim=1)
    expected = temperature**2 * F.kl_div(log_q, torch.from_numpy(mean), reduction="batchmean")
    batch = {
        "labels": torch.full((4,), UNLABELLED),
        "teacher_logits": torch.from_numpy(teachers),
    }
    loss = EnsembleLoss(config, lambda logits: weigh(logits, config))
    found = loss(SimpleNamespace(logits=torch.from_numpy(student)), batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-2, abs=1e-3)


def test_weights_worked_by_hand():
    # the first teacher says 0.8, 0.2; the second 0.4, 0.6
    logits = torch.tensor([[[0.8, 0.2], [0.4, 0.6]]]).log()
    equal = Config(teachers=TWO)
    assert weigh(logits, equal).tolist() == [[0.5, 0.5]]
    sure = Config(teachers=TWO, by="confidence")
    assert weigh(logits, sure)[0].tolist() == pytest.approx([8 / 14, 6 / 14])
    surer = Config(teachers=TWO, by="confidence", sharpness=2, weights=(1, 2))
    assert weigh(logits, surer)[0].tolist() == pytest.approx([64 / 136, 72 / 136])
    target = EnsembleLoss(Config(teachers=TWO, temperature=1), lambda x: weigh(x, sure)).target(
        {"teacher_logits": logits}
    )
    assert target.exp()[0].tolist() == pytest.approx([8.8 / 14, 5.2 / 14])


def test_a_very_sharp_choice_among_many_labels_is_still_a_number():
    config = Config(teachers=TWO, by="confidence", sharpness=100)
    found = weigh(torch.zeros(2, 2, 5000), config)
    assert torch.allclose(found, torch.full((2, 2), 0.5))


def test_a_lesson_of_several_teachers_keeps_them_apart(tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher(), other=_Contrary())
    examples, _ = lesson(context, tiny.LABELS, TWO, TrainingConfig(max_examples=10), transfer=True)
    expected = tiny.WiseTeacher.answers(examples.texts)
    column = examples.columns["teacher_logits"]
    assert column.shape == (26, 2, 2)
    assert np.array_equal(column[:, 0], expected)
    assert np.array_equal(column[:, 1], -expected / 4)
    assert [context.teachers[name].asked for name in TWO] == [2, 2]


class _Contrary(tiny.WiseTeacher):
    """Says the contrary, and is less sure of it."""

    def logits(self, examples):
        return -super().logits(examples) / 4


def test_the_surer_teacher_is_believed(tmp_path):
    context = replace(
        tiny.context(tmp_path, tiny.WiseTeacher(), other=_Contrary()),
        train=tiny.examples(4, seed=3),
        transfer=unlabelled(tiny.examples(96, seed=4).texts),
    )
    settings = {"teachers": TWO, "weights": (1, 9), "alpha": 1.0, "training": LONG}
    results = {
        by: ensemble.apply(
            tiny.tiny_bert(), Config(by=by, sharpness=20, **settings),
            replace(context, scratch=tmp_path / by),
        )
        for by in ("confidence", "weights")
    }  # fmt: skip
    assert accuracy(results["confidence"]) > 0.9
    assert accuracy(results["weights"]) < 0.6


def test_any_teacher_with_other_labels_is_refused_before_any_work(tmp_path):
    wise, other = tiny.WiseTeacher(), tiny.WiseTeacher(labels=("no", "yes"))
    context = tiny.context(tmp_path, wise, other=other)
    with pytest.raises(TechniqueError, match="teacher `other` knows the labels no, yes"):
        ensemble.apply(tiny.tiny_bert(), Config(teachers=TWO), context)
    assert wise.asked == other.asked == 0
