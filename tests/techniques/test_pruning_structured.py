"""Structured pruning: what is removed, what is refused, retraining with a teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import LayerNorm
from transformers import AlbertConfig

from tasks import model_parts, stream_importance
from tasks.errors import TechniqueError
from tasks.importance import first_order, gated
from tasks.pruning import structured
from tasks.stream import stream
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, divergence


def _widths(bundle):
    parts = model_parts.layers(bundle.model)
    return [p.num_heads for p in parts], [p.num_neurons for p in parts]


def _groups(share, size, multiple):
    return multiple * max(round(share * (size // multiple)), 1)


def _prove(before, after, config):
    heads, neurons = _widths(after)
    assert after.num_parameters() < before.num_parameters()
    num_layers = round(config.layers * 3)
    assert len(heads) == after.model.config.num_hidden_layers == num_layers
    assert sum(heads) == round(config.heads * 4 * num_layers)
    assert sum(neurons) == _groups(config.neurons, 32 * num_layers, config.multiple)
    assert min(heads) >= 1
    assert min(neurons) >= config.multiple
    if config.uniform_heads:
        assert len(set(heads)) == 1
    if config.uniform_neurons:
        assert len(set(neurons)) == 1
    narrow = stream(after.model)
    wanted = 16 if config.hidden == 1 else _groups(config.hidden, 16, config.hidden_multiple)
    assert narrow.width == wanted
    assert narrow.pooled in (None, wanted)
    widths = {tuple(m.normalized_shape) for m in after.model.modules() if isinstance(m, LayerNorm)}
    assert widths == {(wanted,)}


CONTRACT = Contract(
    good=(
        {"heads": 0.5, "neurons": 0.5, "multiple": 4, "training": SHORT},
        {
            "heads": 0.5, "uniform_heads": True, "neurons": 0.25, "uniform_neurons": True,
            "multiple": 8, "normalize": False, "teacher": "baseline", "training": SHORT,
        },
        {"heads": 1, "neurons": 0.25, "multiple": 8, "training": SHORT},
        {
            "heads": 1, "neurons": 1, "hidden": 0.7, "hidden_multiple": 1, "criterion": "fisher",
            "training": SHORT,
        },
        {
            "heads": 0.5, "neurons": 0.5, "multiple": 4, "hidden": 0.5, "hidden_multiple": 2,
            "layers": 0.67, "criterion": "magnitude", "training": SHORT,
        },
    ),
    bad=(
        ({"heads": 0}, "greater than 0"),
        ({"neurons": 1.2}, "less than or equal to 1"),
        ({"hidden": 0}, "greater than 0"),
        ({"layers": 1.5}, "less than or equal to 1"),
        ({"criterion": "random"}, "'first_order', 'fisher' or 'magnitude'"),
        ({"hidden_multiple": 0}, "greater than or equal to 1"),
        ({"heads": 1, "neurons": 1}, "nothing would be removed"),
        ({"multiple": 0}, "greater than or equal to 1"),
        ({"importance_examples": 0}, "greater than or equal to 1"),
        ({"teacher": "baseline", "alpha": 2}, "less than or equal to 1"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_parts_that_the_model_does_not_need_are_the_ones_removed(kind):
    bundle = tiny.tiny(kind)
    parts = model_parts.layers(bundle.model)
    heads = [torch.ones(1, 4) for _ in parts]
    neurons = [torch.ones(1, 32) for _ in parts]
    for layer, head in ((0, 1), (0, 2), (2, 3)):  # outputs set to nothing: no loss to remove them
        heads[layer][0, head] = 0
        neurons[layer][0, head * 8 : head * 8 + 8] = 0
    with torch.no_grad():
        for part, head, neuron in zip(parts, heads, neurons, strict=True):
            wide = head.repeat_interleave(part.head_size, dim=1)[0]
            for module, gate in ((part.attention_output, wide), (part.ffn_output, neuron[0])):
                inputs = 0 if kind == "gpt2" else 1
                module.weight.mul_(gate[:, None] if inputs == 0 else gate)
    texts = tiny.examples(16, seed=4).texts
    before = tiny.answers(bundle, texts)
    with gated(parts, heads, neurons):
        assert np.allclose(tiny.answers(bundle, texts), before, atol=1e-6)
    importance = first_order(bundle, tiny.examples(16), torch.device("cpu"))
    structured.cut(parts, importance, structured.Config(heads=0.75, neurons=0.75, multiple=8))
    assert _widths(bundle) == ([2, 4, 3], [16, 32, 24])
    assert np.allclose(tiny.answers(bundle, texts), before, atol=1e-5)


def test_the_least_important_dimensions_and_layers_are_the_ones_removed():
    bundle = tiny.tiny_gpt2()
    found = stream(bundle.model)
    unread, read = [3, 7, 8, 14], [i for i in range(16) if i not in (3, 7, 8, 14)]
    with torch.no_grad():
        for writer in (found.parts[1].attention_output, found.parts[1].ffn_output):
            writer.weight.zero_()  # a layer that adds nothing
            writer.bias.zero_()
        for norm in found.norms:  # dimensions that count in the norms' statistics alone
            norm.weight[unread] = 0
            norm.bias[unread] = 0
    scores = stream_importance.score(bundle, tiny.examples(16), torch.device("cpu"), "first_order")
    assert scores.dimensions[unread].mean() < scores.dimensions[read].mean() / 3
    kept = sorted(scores.dimensions.argsort(descending=True)[:12].tolist())
    expected = bundle.model.transformer.wte.weight[:, kept].clone()
    config = structured.Config(heads=1, neurons=1, layers=0.67, hidden=0.75, hidden_multiple=4)
    assert structured.cut_layers(bundle, scores, config) == [0, 2]
    structured.cut_width(bundle, scores, config)
    assert torch.equal(bundle.model.transformer.wte.weight, expected)


def test_pruned_matrices_of_a_dropped_layer_are_forgotten(tmp_path):
    bundle = tiny.tiny_bert()
    bundle.sparse = tuple(f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(3))
    with torch.no_grad():
        for name in bundle.sparse:
            bundle.model.get_parameter(name)[::2] = 0
    config = structured.Config(
        heads=0.5, neurons=0.5, hidden=0.5, layers=0.34, multiple=4, hidden_multiple=4,
        training=SHORT,
    )  # fmt: skip
    after = structured.apply(bundle, config, tiny.context(tmp_path))
    assert after.sparse == ("bert.encoder.layer.0.intermediate.dense.weight",)
    assert after.model.get_parameter(after.sparse[0]).shape == (16, 8)


def test_a_named_teacher_is_asked_and_changes_the_result(tmp_path):
    teacher = tiny.WiseTeacher()
    texts = tiny.examples(16, seed=4).texts
    results = []
    for name, settings in (("alone", {}), ("taught", {"teacher": "baseline", "alpha": 1.0})):
        scratch = tmp_path / name
        scratch.mkdir()
        config = structured.Config(multiple=8, training=LONG, **settings)
        results.append(structured.apply(tiny.tiny_bert(), config, tiny.context(scratch, teacher)))
        assert teacher.asked == (0 if name == "alone" else 2)
    expected = teacher.answers(texts)
    alone, taught = (divergence(expected, tiny.answers(b, texts)).mean() for b in results)
    assert taught < alone / 2


@pytest.mark.parametrize(
    ("bundle", "settings", "reason"),
    [
        (lambda: tiny.tiny("mpnet"), {}, "heads cannot be cut from a model of type `mpnet`"),
        (lambda: tiny.tiny_bert(), {"heads": 1, "neurons": 0.9}, "nothing would be removed"),
        (
            lambda: tiny.tiny_bert(),
            {"heads": 1, "neurons": 1, "hidden": 0.5},  # in groups of 32 there is one
            "lower `heads`, `neurons`, `hidden`, `layers`",
        ),
        (
            lambda: tiny.bundle_of(
                AlbertConfig(
                    vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
                    intermediate_size=32, num_hidden_layers=3,
                )
            ),
            {},
            "share one set of weights",
        ),
        (
            lambda: replace(tiny.tiny_bert(), labels=("no", "yes")),
            {"teacher": "baseline"},
            "knows the labels negative, positive, not no, yes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_training(bundle, settings, reason, tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher())
    with pytest.raises(TechniqueError, match=reason):
        structured.apply(bundle(), structured.Config(**settings), context)
    assert not list(tmp_path.iterdir())
