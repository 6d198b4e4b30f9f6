"""Students: fresh ones, cuts of the teacher, and those that cannot be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AlbertConfig, XLNetConfig

from tasks import bundle as bundles
from tasks import lstm, masks, model_parts, stream_importance, students
from tasks.errors import TechniqueError
from tasks.importance import first_order
from tasks.quantization import binary, qat
from tasks.stream import stream
from tasks.students import StudentConfig
from tests import tiny
from tests.techniques.contract import same_weights

TEXTS = tiny.examples(8, seed=3).texts
CPU = torch.device("cpu")


def _shape(bundle):
    parts = model_parts.layers(bundle.model)
    return stream(bundle.model).width, [(p.num_heads, p.head_size, p.num_neurons) for p in parts]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_a_fresh_student_has_the_widths_asked_for(kind, tmp_path):
    bundle = tiny.tiny(kind)
    context = tiny.context(tmp_path)
    widths = StudentConfig(layers=2, hidden=8, ffn=12, heads=4)
    student = students.fresh(bundle, widths, context)
    assert _shape(student) == (8, [(4, 2, 12)] * 2)
    assert tiny.answers(student, ["the film"]).shape == (1, 2)
    assert bundle.model.config.num_hidden_layers == 3
    assert same_weights(student, students.fresh(bundle, widths, context))


def test_the_student_is_a_copy_of_the_node_before_where_nothing_is_asked(tmp_path):
    bundle = tiny.tiny_bert()
    student = students.student(bundle, None, tiny.context(tmp_path), "baseline")
    assert same_weights(student, bundle)
    assert student.model is not bundle.model


def test_a_cut_of_a_quantized_teacher_is_in_float_again(tmp_path):
    short = {"epochs": 1, "batch_size": 16}
    teacher = qat.apply(tiny.tiny_bert(), qat.Config(training=short), tiny.context(tmp_path))
    assert teacher.scales
    context = tiny.context(tmp_path, tiny.WiseTeacher(model=teacher))
    widths = StudentConfig(layers=2, init="first")
    student = students.student(tiny.tiny_bert(), widths, context, "baseline")
    assert not student.export.steps
    assert not student.scales


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_packed_teacher_is_not_cut(kind, tmp_path):
    few = binary.Config(train=False)
    teacher = binary.apply(tiny.tiny(kind), few, tiny.context(tmp_path))
    context = tiny.context(tmp_path, tiny.WiseTeacher(model=teacher))
    widths = StudentConfig(layers=2, init="first")
    with pytest.raises(TechniqueError, match=r"packed in few bits.*before its quantization"):
        students.student(tiny.tiny(kind), widths, context, "baseline")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "roberta"])
@pytest.mark.parametrize("init", ["first", "important"])
def test_a_cut_student_is_the_teacher_narrowed(kind, init, tmp_path):
    teacher = tiny.tiny(kind, seed=5)
    untouched = teacher.copy()
    context = tiny.context(tmp_path, tiny.WiseTeacher(model=teacher))
    widths = StudentConfig(layers=2, hidden=12, ffn=8, heads=2, init=init)
    student = students.student(tiny.tiny(kind), widths, context, "baseline")
    assert _shape(student) == (12, [(2, 4, 8)] * 2)
    assert same_weights(teacher, untouched)
    bundles.save(student, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(student, TEXTS))
    assert same_weights(student, students.cut(teacher, widths, context))


def test_a_cut_of_depth_keeps_the_first_and_the_last_layer(tmp_path):
    teacher = tiny.tiny_bert(seed=5)
    context = tiny.context(tmp_path)
    student = students.cut(teacher, StudentConfig(layers=2, init="first"), context)
    model_parts.keep_layers(teacher.model, [0, 2])
    assert same_weights(student, teacher)


def test_first_units_are_the_first(tmp_path):
    teacher = tiny.tiny_bert(seed=5)
    widths = StudentConfig(hidden=10, ffn=7, heads=3, init="first")
    student = students.cut(teacher, widths, tiny.context(tmp_path))
    old, new = (b.model.bert.encoder.layer[1] for b in (teacher, student))
    assert torch.equal(new.attention.self.query.weight, old.attention.self.query.weight[:12, :10])
    assert torch.equal(
        new.attention.output.dense.weight, old.attention.output.dense.weight[:10, :12]
    )
    assert torch.equal(new.intermediate.dense.weight, old.intermediate.dense.weight[:7, :10])
    assert torch.equal(new.output.LayerNorm.bias, old.output.LayerNorm.bias[:10])
    # the hidden layer before the classifier has a width of its own
    old, new = (b.model.bert.pooler.dense for b in (teacher, student))
    assert torch.equal(new.weight, old.weight[:, :10])
    assert torch.equal(student.model.classifier.weight, teacher.model.classifier.weight)


def test_important_units_are_those_of_the_highest_scores(tmp_path):
    teacher = tiny.tiny_bert(seed=5)
    context = tiny.context(tmp_path)
    widths = StudentConfig(hidden=10, ffn=7, heads=3, init="important")
    student = students.cut(teacher, widths, context)
    scores = first_order(teacher.copy(), context.train, CPU)
    neurons = np.sort(np.argsort(-scores.neurons[1].numpy())[:7])
    units = np.sort(
        np.argsort(
            -stream_importance.score(
                teacher.copy(), context.train, CPU, "first_order"
            ).dimensions.numpy()
        )[:10]
    )
    old, new = (b.model.bert.encoder.layer[1].intermediate.dense for b in (teacher, student))
    assert np.array_equal(
        new.weight.detach().numpy(), old.weight.detach().numpy()[np.ix_(neurons, units)]
    )
    assert not np.array_equal(units, np.arange(10))


def test_a_cut_of_a_pruned_teacher_stays_pruned(tmp_path):
    teacher = tiny.tiny_bert(seed=5)
    names = masks.prunable(teacher.model, embeddings=False, head=False)
    masks.zero_lowest(teacher.model, names, 0.5, scope="layer")
    teacher.sparse = names
    widths = StudentConfig(layers=2, ffn=16, init="first")
    student = students.cut(teacher, widths, tiny.context(tmp_path))
    assert student.sparse == tuple(n for n in names if "layer.2" not in n)
    assert masks.sparsity(student.model, student.sparse) > 0.4


_ALBERT = AlbertConfig(
    vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
    intermediate_size=32, num_hidden_layers=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "widths", "reason"),
    [
        (tiny.tiny_bert, {"hidden": 20}, r"`hidden` 20 is more than its teacher's 16: a cut can"),
        (tiny.tiny_bert, {"layers": 4}, r"`layers` 4 is more than its teacher's 3"),
        (tiny.tiny_bert, {"heads": 5, "ffn": 8}, r"`heads` 5 is more than its teacher's 4"),
        (tiny.tiny_bert, {"ffn": 33}, r"`ffn` 33 is more than its teacher's 32"),
        (tiny.tiny_bert, {"layers": 3, "hidden": 16}, "as wide as its teacher"),
        (lambda: tiny.tiny("mpnet"), {"heads": 2}, "heads cannot be cut .* `mpnet`"),
        (lambda: tiny.bundle_of(_ALBERT), {"layers": 2}, "albert.*share one set of weights"),
        (
            lambda: tiny.tiny_bert(labels=("no", "yes")),
            {"layers": 2},
            "knows the labels no, yes, not negative, positive",
        ),
    ],
)
@pytest.mark.parametrize("init", ["first", "important"])
def test_a_cut_that_cannot_be_is_refused(teacher, widths, reason, init, tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher(model=teacher()))
    # nothing is measured before the refusal: there is nothing to measure on
    context = replace(context, train=tiny.examples(0))
    with pytest.raises(TechniqueError, match=reason):
        students.student(tiny.tiny_bert(), StudentConfig(**widths, init=init), context, "baseline")


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ({"layers": 3}, "not fewer than the node before"),
        ({"layers": 5}, "not fewer than the node before"),
        ({"hidden": 6}, "6 is not a multiple of its 4 heads"),
    ],
)
def test_a_fresh_student_that_cannot_be_is_refused(widths, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        students.fresh(tiny.tiny_bert(), StudentConfig(**widths), tiny.context(tmp_path))


def test_a_width_that_the_architecture_does_not_know_is_refused(tmp_path):
    bundle = tiny.bundle_of(XLNetConfig(vocab_size=32, d_model=16, n_layer=2, n_head=4, d_inner=32))
    with pytest.raises(TechniqueError, match="type `xlnet` has no width `ffn` to set: leave it"):
        students.fresh(bundle, StudentConfig(ffn=8), tiny.context(tmp_path))


def test_a_cut_may_have_heads_that_do_not_divide_its_hidden_width():
    assert StudentConfig(hidden=10, heads=4, init="first").heads == 4
    with pytest.raises(ValidationError, match="10 is not a multiple of `heads` 4"):
        StudentConfig(hidden=10, heads=4)


def test_an_lstm_may_be_the_student(tmp_path):
    bundle = tiny.tiny_bert()
    bundle.model.config.id2label = dict(enumerate(tiny.LABELS))
    config = StudentConfig(lstm={"embedding": 8, "hidden": 6})
    context = tiny.context(tmp_path)
    student = students.student(bundle, config, context, "baseline")
    assert student.model.config.model_type == lstm.MODEL_TYPE
    assert student.num_parameters() < bundle.num_parameters()
    assert (student.labels, student.max_length) == (bundle.labels, bundle.max_length)
    assert student.model.config.id2label == dict(enumerate(tiny.LABELS))
    bundles.save(student, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(student, TEXTS))
    assert same_weights(student, students.fresh(bundle, config, context))
    narrower = students.fresh(student, StudentConfig(hidden=4), context)  # of an LSTM, another
    assert narrower.num_parameters() < student.num_parameters()


@pytest.mark.parametrize("more", [{"hidden": 8}, {"init": "first"}, {"layers": 1}])
def test_an_lstm_goes_alone(more):
    with pytest.raises(ValidationError, match="`lstm` has its own widths"):
        StudentConfig(lstm={}, **more)
