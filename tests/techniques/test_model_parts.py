"""Cutting: what is left computes the same as the whole model with the rest switched off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, GPT2Config

from tasks import bundle as bundles
from tasks import model_parts
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.importance import gated
from tests import tiny

TEXTS = tiny.examples(8, seed=3).texts


def _subset(size: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(0, size - 1), min_size=1).map(sorted)


def _gate(kept: list[int], size: int) -> torch.Tensor:
    gate = torch.zeros(1, size)
    gate[0, kept] = 1
    return gate


def _masked_and_cut(
    bundle: Bundle, heads: list[list[int]], neurons: list[list[int]]
) -> tuple[np.ndarray, Bundle]:
    parts = model_parts.layers(bundle.model)
    gates = [_gate(kept, p.num_heads) for kept, p in zip(heads, parts, strict=True)]
    walls = [_gate(kept, p.num_neurons) for kept, p in zip(neurons, parts, strict=True)]
    with gated(parts, gates, walls):
        masked = tiny.answers(bundle, TEXTS)
    shrunken = bundle.copy()
    for part, head, neuron in zip(model_parts.layers(shrunken.model), heads, neurons, strict=True):
        if len(head) < part.num_heads:
            part.keep_heads(head)
        part.keep_neurons(neuron)
    return masked, shrunken


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["bert", "gpt2", "distilbert", "electra", "roberta"]),
    heads=st.tuples(*[_subset(4)] * 3),
    neurons=st.tuples(*[_subset(32)] * 3),
)
def test_a_cut_model_answers_like_the_masked_one(kind, heads, neurons):
    bundle = tiny.tiny(kind)
    masked, shrunken = _masked_and_cut(bundle, list(heads), list(neurons))
    assert np.abs(tiny.answers(shrunken, TEXTS) - masked).max() < 1e-5
    parts = model_parts.layers(shrunken.model)
    assert [p.num_heads for p in parts] == [len(h) for h in heads]
    assert [p.num_neurons for p in parts] == [len(n) for n in neurons]


def test_neurons_of_mpnet_are_cut_and_its_heads_are_not():
    bundle = tiny.tiny("mpnet")
    every = [[0, 1, 2, 3]] * 3
    masked, shrunken = _masked_and_cut(bundle, every, [[0, 5], [1], [2, 3, 31]])
    assert np.abs(tiny.answers(shrunken, TEXTS) - masked).max() < 1e-5
    assert not model_parts.cuts_heads(bundle.model)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "roberta"])
def test_an_unequal_model_reloads_to_the_same_answers(kind, tmp_path):
    bundle = tiny.tiny(kind)
    _, shrunken = _masked_and_cut(
        bundle, [[0], [1, 3], [0, 1, 2]], [[1, 2], [0, 7, 8], list(range(30))]
    )
    bundles.save(shrunken, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert again.num_parameters() == shrunken.num_parameters() < bundle.num_parameters()
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(shrunken, TEXTS))
    parts = model_parts.layers(again.model)
    parts[1].keep_heads([1])  # what was loaded can be cut again
    assert parts[1].num_heads == 1
    assert tiny.answers(again, TEXTS).shape == (len(TEXTS), 2)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "mpnet"])
def test_dropping_a_layer_equals_skipping_it(kind):
    bundle = tiny.tiny(kind)
    _, found = model_parts.layer_list(bundle.model)
    skip = found[1].register_forward_hook(
        lambda module, inputs, output: (
            (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
        )
    )
    skipped = tiny.answers(bundle, TEXTS)
    skip.remove()
    assert np.abs(skipped - tiny.answers(bundle, TEXTS)).max() > 1e-3
    model_parts.keep_layers(bundle.model, [0, 2])
    assert np.abs(tiny.answers(bundle, TEXTS) - skipped).max() < 1e-6
    assert bundle.model.config.num_hidden_layers == 2


def test_an_attention_scale_that_depends_on_the_place_survives_the_drop(tmp_path):
    config = GPT2Config(
        vocab_size=32, n_positions=32, n_embd=16, n_layer=3, n_head=4,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    bundle = tiny.bundle_of(config)
    model_parts.keep_layers(bundle.model, [0, 2])
    last = bundle.model.transformer.h[1].attn
    assert last.layer_idx == 1
    assert last.scaling == pytest.approx(4**-0.5 / 3)
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(bundle, TEXTS))


def test_shared_layers_are_refused():
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3,
    )  # fmt: skip
    with pytest.raises(TechniqueError, match=r"albert.*share one set of weights"):
        model_parts.layers(tiny.bundle_of(config).model)
