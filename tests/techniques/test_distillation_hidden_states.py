"""Hidden states: what comes closer to the teacher, what can be matched, what is left behind."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig

from tasks import model_parts
from tasks.distillation import hidden_states
from tasks.distillation.hidden_states import Config, Matching, pairs
from tasks.errors import TechniqueError
from tasks.stream import stream
from tasks.training.batches import Encoded, unlabelled
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.progress import Silent
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, same_weights

CPU = torch.device("cpu")
MATCH = {"answers": 0, "training": LONG}


def _distance(student, teacher, config):
    """What the technique makes small, on held-out texts, projections aside."""
    loss = Matching(config.model_copy(update={"answers": 0.0}), student, teacher, CPU)
    texts = tiny.examples(16, seed=9)
    batch = Encoded(texts, student.tokenizer, student.max_length).batch(np.arange(16))
    student.model.add_module("distillation_projections", torch.nn.ModuleDict())
    try:
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(loss.ours)
            stack.enter_context(loss.theirs)
            output = student.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                output_hidden_states=True,
            )  # fmt: skip
            return float(loss(output, batch))
    finally:
        del student.model.distillation_projections


def _prove(before, after, config):
    teacher = tiny.tiny(before.model.config.model_type, seed=5)
    parts = model_parts.layers(after.model)
    if config.student is not None:
        assert (len(parts), stream(after.model).width) == (2, 8)
        return
    share = 0.75 if config.answers else 0.25
    assert _distance(after, teacher, config) < share * _distance(before, teacher, config)
    if config.answers:
        assert accuracy(after) > accuracy(before) + 0.2


CONTRACT = Contract(
    good=(
        {"training": LONG},
        {"form": "tinybert", **MATCH},
        {
            "form": "tinybert", "hidden": 2, "attention": 0, "layers": [[0, 1], [1, 2]],
            "student": {"layers": 2, "hidden": 8, "heads": 2, "ffn": 16}, "training": SHORT,
        },
        {
            "relations": ["value"], "relation_heads": 2, "layers": [[1, 1]],
            "student": {"layers": 2, "hidden": 8, "init": "important"}, "training": SHORT,
        },
    ),
    bad=(
        ({"form": "distilbert"}, "'minilmv2' or 'tinybert'"),
        ({"layers": []}, "at least 1 item"),
        ({"layers": [[0, -1]]}, "greater than or equal to 0"),
        ({"layers": [[1, 1], [0, 2]]}, "each student's layer once, in ascending order"),
        ({"layers": [[0, 2], [1, 1]]}, "must not learn from an earlier layer"),
        ({"layers": [[0, 1], [0, 2]]}, "each student's layer once"),
        ({"hidden": 1}, "`hidden` is no setting of `form: minilmv2`"),
        ({"form": "tinybert", "relation_heads": 2}, "`relation_heads` is no setting"),
        ({"form": "tinybert", "relations": ["key"]}, "`relations` is no setting"),
        ({"form": "tinybert", "hidden": 0, "attention": 0}, "nothing would be matched"),
        ({"relations": []}, "each once at most"),
        ({"relations": ["key", "key"]}, "each once at most"),
        ({"relation_heads": 0}, "greater than or equal to 1"),
        ({"answers": -1}, "greater than or equal to 0"),
        ({"student": {"lstm": {}}}, "an LSTM has no attention to match"),
    ),
    refuses={
        "albert": "share one set of weights",
        "lstm": "attention .* is not known|no width `ffn`|cannot be cut",
    },
    prove=_prove,
)  # fmt: skip


@pytest.fixture
def teacher():
    return tiny.WiseTeacher(model=tiny.tiny_bert(seed=5))


def test_nothing_of_the_matching_is_left_in_the_student(teacher, tmp_path):
    untouched = teacher.model.copy()
    widths = {"layers": 2, "hidden": 8, "heads": 2}
    config = Config(form="tinybert", attention=0, student=widths, training=SHORT)
    student = hidden_states.apply(tiny.tiny_bert(), config, tiny.context(tmp_path, teacher))
    assert not any("projection" in name for name, _ in student.model.named_modules())
    for bundle in (student, teacher.model):
        for module in bundle.model.modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            assert not any(hook.__module__.startswith("tasks") for hook in hooks)
    assert all(p.grad is None for p in teacher.model.model.parameters())
    assert same_weights(teacher.model, untouched)


def test_the_projections_learn_where_widths_differ(teacher, tmp_path, monkeypatch):
    made = []
    fresh = Matching.fresh_projections

    def remembered(loss):
        projections = fresh(loss)
        made.append((projections, {k: p.weight.detach().clone() for k, p in projections.items()}))
        return projections

    monkeypatch.setattr(Matching, "fresh_projections", remembered)
    context = tiny.context(tmp_path, teacher)
    narrow = Config(form="tinybert", attention=0, student={"hidden": 8, "heads": 2}, training=SHORT)
    hidden_states.apply(tiny.tiny_bert(), narrow, context)
    hidden_states.apply(tiny.tiny_bert(), Config(form="tinybert", training=SHORT), context)
    hidden_states.apply(tiny.tiny_bert(), Config(training=SHORT), context)
    (projections, at_first), *others = made
    assert {k: tuple(p.weight.shape) for k, p in projections.items()} == {
        "embeddings": (16, 8),
        "layers": (16, 8),
    }
    assert not any(torch.equal(p.weight, at_first[k]) for k, p in projections.items())
    assert all(len(rest) == 0 for rest, _ in others)


def test_tinybert_worked_out_layer_by_layer(teacher):
    student = tiny.tiny_bert()
    config = Config(form="tinybert", hidden=2, attention=3, layers=[[0, 1], [2, 2]], answers=0)
    texts = tiny.examples(16, seed=9).texts
    total = 0.0
    for text in texts:
        ids = torch.tensor([student.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            ours, theirs = (
                b.model(input_ids=ids, output_hidden_states=True).hidden_states
                for b in (student, teacher.model)
            )
        mse = torch.nn.functional.mse_loss
        total += 2 * float(mse(ours[0], theirs[0]))
        for mine, master in ((0, 1), (2, 2)):
            total += 2 * float(mse(ours[mine + 1], theirs[master + 1]))
            scores = []
            for b, states, place in ((student, ours, mine), (teacher.model, theirs, master)):
                layer = b.model.bert.encoder.layer[place].attention.self
                q, k = (
                    p(states[place])[0].view(-1, 4, 4).transpose(0, 1)
                    for p in (layer.query, layer.key)
                )
                scores.append(q @ k.transpose(1, 2) / 2)
            total += 3 * float(mse(*scores).detach())
    found = _distance(student, teacher.model, config)
    assert found == pytest.approx(total / len(texts), rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "mpnet", "albert"])
@pytest.mark.parametrize("form", ["minilmv2", "tinybert"])
def test_every_kind_of_model_comes_closer_to_its_teacher(kind, form, tmp_path):
    if kind == "albert":
        config = AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3, max_position_embeddings=32,
        )  # fmt: skip
        student, master = tiny.bundle_of(config), tiny.bundle_of(config, seed=5)
    else:
        student, master = tiny.tiny(kind), tiny.tiny(kind, seed=5)
    config = Config(form=form, answers=0, training=SHORT)
    context = tiny.context(tmp_path, tiny.WiseTeacher(model=master))
    after = hidden_states.apply(student, config, context)
    assert _distance(after, master, config) < _distance(student, master, config)
    assert context.teachers["baseline"].asked == 0  # `answers: 0` needs none


def test_kinds_may_differ_where_tokens_are_the_same(teacher, tmp_path):
    student = tiny.tiny_gpt2()
    config = Config(form="tinybert", answers=0, training=SHORT)
    after = hidden_states.apply(student, config, tiny.context(tmp_path, teacher))
    assert _distance(after, teacher.model, config) < _distance(student, teacher.model, config)


class _Fall(Exception):
    pass


class _Faller(Silent):
    def __init__(self, at):
        self.left = at

    def advance(self, steps, *, loss=None, rate=None):
        self.left -= steps
        if self.left <= 0:
            raise _Fall


def test_a_training_that_fell_goes_on_with_its_projections(teacher, tmp_path):
    config = Config(
        form="tinybert", attention=0, temperature_end=1, student={"hidden": 8, "heads": 2},
        training={**SHORT, "checkpoint_seconds": 1e-6},
    )  # fmt: skip
    whole, fallen = (tiny.context(tmp_path / name, teacher) for name in ("one", "two"))
    expected = hidden_states.apply(tiny.tiny_bert(), config, whole)
    with pytest.raises(_Fall):
        hidden_states.apply(tiny.tiny_bert(), config, replace(fallen, progress=_Faller(5)))
    assert same_weights(hidden_states.apply(tiny.tiny_bert(), config, fallen), expected)


@pytest.mark.parametrize("form", ["minilmv2", "tinybert"])
@pytest.mark.parametrize("training", [{"precision": "bf16"}, {"accumulation": 2, "batch_size": 8}])
def test_other_precision_and_accumulation(form, training, teacher, tmp_path):
    config = Config(form=form, answers=0, training={**SHORT, **training})
    student = tiny.tiny_bert()
    after = hidden_states.apply(student, config, tiny.context(tmp_path, teacher))
    assert _distance(after, teacher.model, config) < _distance(student, teacher.model, config)
    assert all(p.dtype == torch.float32 for p in after.model.parameters())


def test_pruned_zeros_stay(teacher, tmp_path):
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.0.output.dense.weight"
    bundle.sparse = (name,)
    bundle.model.get_parameter(name).data[:4] = 0
    after = hidden_states.apply(bundle, Config(training=SHORT), tiny.context(tmp_path, teacher))
    weight = after.model.get_parameter(name)
    assert (weight[:4] == 0).all()
    assert (weight[4:] != 0).any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A teacher whose hidden states hold the rule."""
    bundle = tiny.tiny_bert(seed=5)
    fit(
        bundle,
        tiny.examples(256, seed=6),
        tiny.examples(32, seed=1),
        TrainingConfig(**LONG, dropout=0),
        seed=1,
        device=CPU,
        scratch=tmp_path_factory.mktemp("trained"),
        progress=Silent(),
    )
    assert accuracy(bundle) > 0.95
    return tiny.WiseTeacher(model=bundle)


@pytest.mark.parametrize("form", ["minilmv2", "tinybert"])
def test_the_teacher_teaches_what_a_few_labels_do_not(form, trained, tmp_path):
    context = replace(
        tiny.context(tmp_path, trained),
        train=tiny.examples(4, seed=3),
        transfer=unlabelled(tiny.examples(96, seed=4).texts),
    )
    config = Config(form=form, answers=10, alpha=0.9, training=LONG)
    assert accuracy(hidden_states.apply(tiny.tiny_bert(), config, context)) > 0.95


def test_hidden_states_alone_carry_the_rule(trained, tmp_path):
    student = tiny.tiny_bert()
    trained_head = trained.model.model
    student.model.classifier.load_state_dict(trained_head.classifier.state_dict())
    student.model.bert.pooler.load_state_dict(trained_head.bert.pooler.state_dict())
    context = replace(
        tiny.context(tmp_path, trained), train=unlabelled(tiny.examples(96, seed=4).texts)
    )
    config = Config(form="tinybert", answers=0, training=LONG)
    after = hidden_states.apply(student, config, context)
    assert accuracy(after) > 0.9 > accuracy(student)


def test_layers_are_matched_by_default_as_in_the_papers():
    assert pairs(Config(), 3, 6) == ((2, 5),)
    assert pairs(Config(form="tinybert"), 3, 6) == ((0, 1), (1, 3), (2, 5))
    assert pairs(Config(layers=[[0, 3]]), 3, 6) == ((0, 3),)


def _other_words():
    bundle = tiny.tiny_bert(seed=5)
    vocabulary = dict(bundle.tokenizer.get_vocab())
    vocabulary["film"], vocabulary["plot"] = vocabulary["plot"], vocabulary["film"]
    bundle.tokenizer = type(bundle.tokenizer)(vocab=vocabulary)
    return bundle


def _cased():
    bundle = tiny.tiny_bert(seed=5)
    vocabulary = bundle.tokenizer.get_vocab()
    bundle.tokenizer = type(bundle.tokenizer)(vocab=vocabulary, do_lower_case=False)
    return bundle


def _few_heads():
    bundle = tiny.tiny_bert(seed=5)
    model_parts.layers(bundle.model)[2].keep_heads([0, 1])
    return bundle


@pytest.mark.parametrize(
    ("master", "settings", "reason"),
    [
        (_other_words, {}, "teacher `baseline` has another tokenizer than the student"),
        (_cased, {}, "has another tokenizer"),
        (
            lambda: replace(tiny.tiny_bert(seed=5), max_length=8),
            {},
            "reads 8 tokens of a text, the student 16",
        ),
        (tiny.tiny_bert, {"layers": [[3, 2]]}, "the student has no layer 3 .* are 0 to 2"),
        (tiny.tiny_bert, {"layers": [[0, 1], [2, 5]]}, "the teacher has no layer 5 to match"),
        (
            _few_heads,
            {"form": "tinybert"},
            "layer 2 of the student has 4 heads, layer 2 of the teacher 2, .*`attention: 0`",
        ),
        (
            tiny.tiny_bert,
            {"relation_heads": 3},
            "student's layer 2 is 16 wide, of the teacher's layer 2 16: `relation_heads` 3 must",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_before_any_work(master, settings, reason, tmp_path):
    teacher = tiny.WiseTeacher(model=master())
    texts = ["The film", *tiny.examples(63).texts]
    context = tiny.context(tmp_path / "scratch", teacher)
    context = replace(context, train=replace(context.train, texts=texts))
    with pytest.raises(TechniqueError, match=reason):
        hidden_states.apply(tiny.tiny_bert(), Config(**settings), context)
    assert teacher.asked == 0
    assert not (tmp_path / "scratch").exists()


def test_a_teacher_with_other_labels_is_refused(tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher(labels=("no", "yes")))
    with pytest.raises(TechniqueError, match="knows the labels no, yes, not negative"):
        hidden_states.apply(tiny.tiny_bert(), Config(), context)
