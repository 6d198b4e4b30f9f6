"""Structured pruning: what is removed, what is refused, retraining with a teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig

from tasks import model_parts
from tasks.errors import TechniqueError
from tasks.importance import first_order, gated
from tasks.pruning import structured
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, divergence


def _widths(bundle):
    parts = model_parts.layers(bundle.model)
    return [p.num_heads for p in parts], [p.num_neurons for p in parts]


def _prove(before, after, config):
    (heads, neurons), (old_heads, old_neurons) = _widths(after), _widths(before)
    assert after.num_parameters() < before.num_parameters()
    assert sum(heads) == round(config.heads * sum(old_heads))
    assert sum(neurons) == config.multiple * round(
        config.neurons * sum(old_neurons) / config.multiple
    )
    assert min(heads) >= 1
    assert min(neurons) >= config.multiple
    if config.uniform_heads:
        assert len(set(heads)) == 1
    if config.uniform_neurons:
        assert len(set(neurons)) == 1


CONTRACT = Contract(
    good=(
        {"heads": 0.5, "neurons": 0.5, "multiple": 4, "training": SHORT},
        {
            "heads": 0.5, "uniform_heads": True, "neurons": 0.25, "uniform_neurons": True,
            "multiple": 8, "normalize": False, "teacher": "baseline", "training": SHORT,
        },
        {"heads": 1, "neurons": 0.25, "multiple": 8, "training": SHORT},
    ),
    bad=(
        ({"heads": 0}, "greater than 0"),
        ({"neurons": 1.2}, "less than or equal to 1"),
        ({"heads": 1, "neurons": 1}, "nothing would be removed"),
        ({"multiple": 0}, "greater than or equal to 1"),
        ({"importance_examples": 0}, "greater than or equal to 1"),
        ({"teacher": "baseline", "alpha": 2}, "less than or equal to 1"),
    ),
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
