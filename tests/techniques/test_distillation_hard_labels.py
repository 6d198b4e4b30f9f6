"""Hard labels: which of the teacher's labels are learned, and what is told of the others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.distillation import hard_labels
from tasks.distillation.hard_labels import Config, choose, relabelled
from tasks.errors import TechniqueError
from tasks.training.batches import UNLABELLED, unlabelled
from tasks.training.progress import Silent
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, softmax


def _prove(before, after, config):
    if config.student is None:
        assert accuracy(after) > accuracy(before) + 0.2
    else:
        assert after.num_parameters() < before.num_parameters()


CONTRACT = Contract(
    good=(
        {"training": LONG},
        {"confidence": 0, "agreement": False, "balance": 1, "transfer": False, "training": LONG},
        {"student": {"layers": 1, "init": "first"}, "training": SHORT},
    ),
    bad=(
        ({"confidence": 1}, "less than 1"),
        ({"confidence": -0.1}, "greater than or equal to 0"),
        ({"balance": 0.5}, "greater than or equal to 1"),
        ({"teacher": ""}, "at least 1 character"),
        ({"student": {"ffn": 0}}, "greater than or equal to 1"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


class _Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class _Teacher(tiny.WiseTeacher):
    """Answers with given probabilities of `positive`, text by text."""

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities = probabilities

    def logits(self, examples):
        self.asked += 1
        p = np.array([self.probabilities[text] for text in examples.texts])
        return np.log(np.stack([1 - p, p], axis=1)).astype(np.float32)


@pytest.fixture
def context(tmp_path):
    """Six labelled texts and three of other domains, of which the teacher is more or less sure."""
    labelled = {"a": 0.95, "b": 0.9, "c": 0.7, "d": 0.2, "e": 0.05, "f": 0.99}
    others = {"x": 0.85, "y": 0.55, "z": 0.01}
    examples = replace(tiny.examples(6), texts=list(labelled), labels=np.array([1, 1, 1, 0, 1, 1]))
    return replace(
        tiny.context(tmp_path, _Teacher(labelled | others)),
        train=examples,
        transfer=unlabelled(list(others)),
        progress=_Heard(),
    )


@pytest.mark.parametrize(
    ("asked", "left", "told"),
    [
        (
            {"confidence": 0.75},
            {"a": 1, "b": 1, "d": 0, "f": 1, "x": 1, "z": 0},
            "6 of 9 texts stay (negative 2, positive 4); "
            "dropped 2 unsure, 1 against their own label, 0 for balance",
        ),
        (
            {"confidence": 0.75, "agreement": False},
            {"a": 1, "b": 1, "d": 0, "e": 0, "f": 1, "x": 1, "z": 0},
            "7 of 9 texts stay (negative 3, positive 4); "
            "dropped 2 unsure, 0 against their own label, 0 for balance",
        ),
        (
            {"confidence": 0.75, "balance": 1},
            {"a": 1, "d": 0, "f": 1, "z": 0},
            "4 of 9 texts stay (negative 2, positive 2); "
            "dropped 2 unsure, 1 against their own label, 2 for balance",
        ),
        (
            {"confidence": 0.75, "balance": 1.5},
            {"a": 1, "b": 1, "d": 0, "f": 1, "z": 0},
            "5 of 9 texts stay (negative 2, positive 3); "
            "dropped 2 unsure, 1 against their own label, 1 for balance",
        ),
        (
            {"confidence": 0, "agreement": False, "transfer": False},
            {"a": 1, "b": 1, "c": 1, "d": 0, "e": 0, "f": 1},
            "6 of 6 texts stay (negative 2, positive 4); "
            "dropped 0 unsure, 0 against their own label, 0 for balance",
        ),
    ],
)
def test_filters_worked_by_hand(asked, left, told, context):
    examples, training = relabelled(tiny.LABELS, Config(**asked), context)
    assert dict(zip(examples.texts, examples.labels, strict=True)) == left
    assert context.progress.lines == [f"the teacher's labels: {told}"]
    assert training.max_examples is None
    assert context.teachers["baseline"].asked == (1 if asked.get("transfer") is False else 2)


@settings(deadline=None)
@given(
    logits=arrays.arrays(np.float32, (24, 3), elements=st.floats(-6, 6, width=32)),
    gold=arrays.arrays(np.int64, (24,), elements=st.sampled_from([UNLABELLED, 0, 1, 2])),
    confidence=st.floats(0, 0.99), agreement=st.booleans(),
    balance=st.none() | st.floats(1, 3),
)  # fmt: skip
def test_what_stays_passes_every_filter_and_nothing_else_goes(
    logits, gold, confidence, agreement, balance
):
    config = Config(confidence=confidence, agreement=agreement, balance=balance)
    probabilities = softmax(logits.astype(float))
    sure, given_label = probabilities.max(1), logits.argmax(1)
    passes = (sure >= confidence) & ((not agreement) | (gold == UNLABELLED) | (gold == given_label))
    counts = np.bincount(given_label[passes], minlength=3)
    if not passes.any() or (balance is not None and counts.min() == 0):
        with pytest.raises(TechniqueError):
            choose(gold, logits, config, "abc")
        return
    chosen = choose(gold, logits, config, "abc")
    assert passes[chosen.kept].all()
    assert (np.diff(chosen.kept) > 0).all()
    assert len(chosen.kept) + chosen.unsure + chosen.contrary + chosen.surplus == 24
    left = np.bincount(given_label[chosen.kept], minlength=3)
    most = np.inf if balance is None else int(balance * counts.min())
    assert (left == np.minimum(counts, most)).all()
    dropped = np.setdiff1d(np.flatnonzero(passes), chosen.kept)
    for place in dropped:  # the surest stay
        rivals = chosen.kept[given_label[chosen.kept] == given_label[place]]
        assert sure[rivals].min() >= sure[place] - 1e-12


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"confidence": 0.995, "transfer": False}, r"of 6 the teacher is sure of 0 .*0\.990"),
        ({"confidence": 0.93, "balance": 2, "transfer": False}, "no text is left of .*negative"),
    ],
)
def test_labels_that_leave_nothing_to_learn_are_refused(asked, reason, context):
    with pytest.raises(TechniqueError, match=reason):
        hard_labels.apply(tiny.tiny_bert(), Config(**asked), context)


def test_a_teacher_with_other_labels_is_refused_before_any_work(tmp_path):
    teacher = tiny.WiseTeacher(labels=("no", "yes"))
    with pytest.raises(TechniqueError, match="knows the labels no, yes, not negative"):
        hard_labels.apply(tiny.tiny_bert(), Config(), tiny.context(tmp_path, teacher))
    assert teacher.asked == 0


def test_the_teacher_teaches_what_a_few_wrong_labels_do_not(tmp_path):
    few = tiny.examples(8, seed=3)
    wrong = replace(few, labels=np.array([0, 1, 1, 0, 1, 0, 1, 0]))  # of eight, six are wrong
    context = replace(
        tiny.context(tmp_path, tiny.WiseTeacher()),
        train=wrong,
        transfer=unlabelled(tiny.examples(96, seed=4).texts),
    )
    taught = hard_labels.apply(tiny.tiny_bert(), Config(training=LONG), context)
    assert accuracy(taught) > 0.95
    labels_alone = {text: float(label) for text, label in zip(few.texts, wrong.labels, strict=True)}
    gold = _Teacher({text: 0.01 + 0.98 * p for text, p in labels_alone.items()})
    context = replace(context, teachers={"baseline": gold})
    alone = hard_labels.apply(tiny.tiny_bert(), Config(transfer=False, training=LONG), context)
    assert accuracy(alone) < 0.8
