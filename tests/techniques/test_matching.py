"""Distances of hidden states and attention, against the papers' formulas written out in loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AlbertConfig

from tasks import matching, model_parts
from tasks.errors import TechniqueError
from tasks.matching import Seen, Watch, attentions
from tests import tiny
from tests.training.test_lstm import tiny_lstm

LENGTHS = (5, 3, 1)
KINDS = ("bert", "gpt2", "distilbert", "electra", "roberta", "mpnet", "albert")


def _model(kind, **more):
    if kind != "albert":
        return tiny.tiny(kind).model
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=4, num_hidden_groups=2, **more,
    )  # fmt: skip
    return tiny.bundle_of(config).model


def _hooks(model):
    """How many hooks of this project there are; transformers has its own."""
    hooks = [h for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks)
             for h in d.values()]  # fmt: skip
    return sum(hook.__module__.startswith("tasks") for hook in hooks)


def _mask():
    return torch.tensor([[int(place < length) for place in range(5)] for length in LENGTHS])


def _random(seed, width):
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(seed))


def test_hidden_distance_is_the_mean_of_each_texts_mse():
    ours, theirs = _random(0, 4), _random(1, 4)
    expected = np.mean(
        [float(F.mse_loss(ours[i, :n], theirs[i, :n])) for i, n in enumerate(LENGTHS)]
    )
    found = matching.hidden_distance(ours, theirs, _mask())
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_distance_is_the_mean_over_heads_of_the_scores_mse(causal):
    ours = Seen(_random(0, 8), _random(1, 8), _random(2, 8))
    theirs = Seen(_random(3, 4), _random(4, 4), _random(5, 4))
    texts = []
    for i, n in enumerate(LENGTHS):
        squares = []
        for head in range(2):
            for a in range(n):
                for b in range(a + 1 if causal else n):
                    scores = []
                    for seen, size in ((ours, 4), (theirs, 2)):
                        units = slice(head * size, (head + 1) * size)
                        q, k = seen.query[i, a, units], seen.key[i, b, units]
                        scores.append(float(q @ k) / np.sqrt(size))
                    squares.append((scores[0] - scores[1]) ** 2)
        texts.append(np.mean(squares))
    found = matching.attention_distance(ours, theirs, 2, _mask(), causal=causal)
    assert float(found) == pytest.approx(np.mean(texts), rel=1e-5)


def test_relation_distance_is_minilms_kl_whatever_the_widths():
    ours, theirs = _random(0, 6), _random(1, 12)
    texts = []
    for i, n in enumerate(LENGTHS):
        total = 0.0
        for head in range(3):
            relations = []
            for vectors, size in ((theirs, 4), (ours, 2)):
                part = vectors[i, :n, head * size : (head + 1) * size]
                relations.append(torch.softmax(part @ part.T / np.sqrt(size), dim=-1))
            p, q = relations
            total += float((p * (p / q).log()).sum())
        texts.append(total / (3 * n))
    ours.requires_grad_()
    found = matching.relation_distance(ours, theirs, 3, _mask())
    assert float(found.detach()) == pytest.approx(np.mean(texts), rel=1e-4)
    found.backward()
    assert torch.isfinite(ours.grad).all()
    assert (ours.grad[1, 3:] == 0).all()  # nothing of the padding


def test_a_relation_worked_by_hand():
    # one head of width 1; two tokens: the teacher's 0 and 1, the student's both 0
    theirs, ours = torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 1)
    p = np.e / (1 + np.e)  # the second row of the teacher's relations is (1 − p, p)
    expected = (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))) / 2
    found = matching.relation_distance(ours, theirs, 1, torch.ones(1, 2))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_alike_is_no_distance():
    same = _random(0, 8)
    seen = Seen(same, same, same)
    assert float(matching.hidden_distance(same, same, _mask())) == 0
    assert float(matching.attention_distance(seen, seen, 2, _mask(), causal=False)) == 0
    assert float(matching.relation_distance(same, same, 4, _mask())) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_are_the_projections_of_each_layers_input(kind):
    model = _model(kind)
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    mask = (ids != 0).long()
    layers = attentions(model)
    assert len(layers) == model.config.num_hidden_layers
    with Watch(model) as watch, torch.no_grad():
        for _ in range(2):  # the last run counts
            states = model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True
            ).hidden_states
        assert _hooks(model) > 0
        for place, layer in enumerate(layers):
            assert (layer.num_heads, layer.width, layer.causal) == (4, 16, kind == "gpt2")
            state = states[place]
            if kind == "gpt2":
                state = model.transformer.h[place].ln_1(state)
            expected = [projection(state) for projection in layer.projections]
            expected = expected if len(expected) == 3 else expected[0].split(16, dim=-1)
            seen = watch.seen(place)
            for found, values in zip((seen.query, seen.key, seen.value), expected, strict=True):
                assert torch.allclose(found, values, atol=1e-6)
    assert _hooks(model) == 0


def test_scores_are_what_the_model_attends_by():
    model = tiny.tiny_bert().model
    model.set_attn_implementation("eager")
    ids = torch.tensor([[2, 5, 6, 3]])
    with Watch(model) as watch, torch.no_grad():
        weights = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True
        ).attentions
        for place in range(3):
            seen = watch.seen(place)
            scores = matching._scores(seen.query, seen.key, 4)
            assert torch.allclose(scores.softmax(-1), weights[place], atol=1e-6)


def test_cut_heads_are_seen_as_they_are():
    model = tiny.tiny_bert().model
    model_parts.layers(model)[1].keep_heads([0, 2, 3])
    assert [layer.num_heads for layer in attentions(model)] == [4, 3, 4]
    assert attentions(model)[1].width == 12


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(TechniqueError, match="2 layers a group cannot be matched layer by layer"):
        attentions(_model("albert", inner_group_num=2))
    with pytest.raises(TechniqueError, match="attention of a model of type `nightpress-lstm` is"):
        attentions(tiny_lstm().model)


def test_a_uniform_map_is_tinyberts():
    assert matching.spread(4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert matching.spread(4, 6) == ((0, 1), (1, 2), (2, 4), (3, 5))
    assert matching.spread(3, 3) == ((0, 0), (1, 1), (2, 2))
    assert matching.spread(3, 2) == ((0, 0), (1, 1), (2, 1))


def test_relation_heads_divide_both_widths():
    assert matching.relation_heads((384, 384), 12) == 12
    assert matching.relation_heads((192, 384), 12) == 12
    assert matching.relation_heads((128, 384), 12) == 8
    assert matching.relation_heads((7, 384), 12) == 1
