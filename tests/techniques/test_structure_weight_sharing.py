"""Shared matrices: the nearest ones, one parameter in memory, on disk and in the export."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import scipy.cluster.hierarchy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, BertConfig

from tasks import bundle as bundles
from tasks import masks, model_parts
from tasks.errors import TechniqueError
from tasks.pruning import magnitude, structured
from tasks.runtime.export import export
from tasks.structure import layer_drop, weight_sharing
from tasks.structure.weight_sharing import Config, distance, families_of, grouped, tie
from tests import tiny
from tests.runtime.test_export import centred, logits, quantized
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, same_weights

TEXTS = tiny.examples(16, seed=3).texts
KINDS = ("attention_input", "attention_output", "ffn_input", "ffn_output")


def _matrices(bundle):
    """The matrices of the layers, those that go together as one."""
    return [
        unit
        for part in model_parts.layers(bundle.model)
        for unit in (part.projections[0], part.attention_output, part.ffn_input, part.ffn_output)
    ]


def _prove(before, after, config):
    old, new = (len({id(m.weight) for m in _matrices(b)}) for b in (before, after))
    assert old == 12
    if config.max_distance is None:
        share = len(config.kinds) / 4
        shared = max(round(config.keep * 12 * share), len(config.kinds))
        assert new == 12 - 12 * share + shared
    assert new < old
    units = 3 * len(config.kinds)
    stay = new - (12 - units)
    assert after.notes[weight_sharing.NOTE] == f"{stay} of {units} matrices stay distinct"
    assert after.num_parameters() < before.num_parameters()


CONTRACT = Contract(
    good=(
        {"keep": 0.5, "training": SHORT},
        {"keep": 0.1, "kinds": ["ffn_input", "ffn_output"], "training": SHORT},
        {"keep": 0.1, "max_distance": 0.99, "teacher": "baseline", "training": SHORT},
    ),
    bad=(
        ({"keep": 0}, "greater than 0"),
        ({"keep": 1}, "less than 1"),
        ({"max_distance": 0}, "greater than 0"),
        ({"kinds": []}, "at least 1 item"),
        ({"kinds": ["embedding"]}, "'attention_input', 'attention_output'"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


def press(bundle, folder, **settings):
    config = Config(**{"training": SHORT, **settings})
    return weight_sharing.apply(bundle, config, tiny.context(folder))


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(2, 7),
    keep=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_groups_are_those_of_wards_method(number, keep, seed):
    values = np.random.default_rng(seed).normal(size=(number, 5))
    keep = min(keep, number - 1)
    (groups,) = grouped([values @ values.T], keep / number, None)
    merges = scipy.cluster.hierarchy.ward(values)
    names = scipy.cluster.hierarchy.fcluster(merges, keep, criterion="maxclust")
    expected = {tuple(np.flatnonzero(names == name)) for name in set(names)}
    assert {tuple(group) for group in groups} == expected


@given(seed=st.integers(0, 1000), cut=st.integers(1, 4))
def test_the_distance_is_the_squared_error_that_joining_adds(seed, cut):
    values = np.random.default_rng(seed).normal(size=(5, 4))
    first, second = list(range(cut)), list(range(cut, 5))

    def scatter(rows):
        return ((values[rows] - values[rows].mean(axis=0)) ** 2).sum()

    added = scatter(first + second) - scatter(first) - scatter(second)
    mean_norm = (values**2).sum(axis=1).mean()
    assert distance(values @ values.T, first, second) == pytest.approx(added / mean_norm)


def test_inner_products_are_those_of_all_matrices_that_go_together():
    bundle = tiny.tiny_bert()
    found = families_of(bundle, KINDS)
    assert [len(family.members) for family in found] == [3, 3, 3, 3]
    layers = bundle.model.bert.encoder.layer
    flat = [
        np.concatenate([
            getattr(layer.attention.self, name).weight.detach().double().numpy().ravel()
            for name in ("query", "key", "value")
        ])
        for layer in layers
    ]  # fmt: skip
    np.testing.assert_allclose(found[0].products, np.stack(flat) @ np.stack(flat).T, rtol=1e-9)


def test_equal_matrices_are_found_and_sharing_them_changes_nothing():
    bundle = tiny.tiny_bert()
    parts = model_parts.layers(bundle.model)
    with torch.no_grad():
        for one, other in zip(parts[0].projections, parts[2].projections, strict=True):
            other.weight.copy_(one.weight)
    before = tiny.answers(bundle, TEXTS)
    family = families_of(bundle, ["attention_input"])[0]
    (groups,) = grouped([family.products], 0.1, 1e-9)
    assert groups == [[0, 2], [1]]
    tie([family.members[i] for i in groups[0]], set())
    assert parts[0].projections[1].weight is parts[2].projections[1].weight
    assert np.array_equal(tiny.answers(bundle, TEXTS), before)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "mpnet"])
def test_two_names_have_one_storage_after_training_and_reload(kind, tmp_path):
    before = tiny.tiny(kind)
    after = press(before, tmp_path, keep=0.1)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    for bundle in (after, again, again.copy()):
        assert len({m.weight.data_ptr() for m in _matrices(bundle)}) == 4
        assert len(model_parts.tied(bundle.model)) == (4 if kind == "gpt2" else 6)
    assert again.num_parameters() == after.num_parameters() < before.num_parameters()
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    biases = {id(m.bias) for m in _matrices(again)}
    assert len(biases) == 12
    # the file of weights holds each once
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size < 4 * after.num_parameters() + 16_000
    again.model.to(torch.float64).to(torch.float32)
    assert len({m.weight.data_ptr() for m in _matrices(again)}) == 4


def test_a_training_that_was_killed_goes_on_with_the_matrices_shared(tmp_path):
    config = Config(training={**SHORT, "checkpoint_seconds": 1e-9})
    whole = weight_sharing.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        weight_sharing.apply(tiny.tiny_bert(), config, replace(context, progress=tiny.Killer(4)))
    assert list((tmp_path / "killed").iterdir())
    resumed = weight_sharing.apply(tiny.tiny_bert(), config, context)
    assert same_weights(resumed, whole)
    assert model_parts.tied(resumed.model) == model_parts.tied(whole.model)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "mpnet"])
def test_the_export_answers_as_pytorch(kind, tmp_path):
    after = press(tiny.tiny(kind), tmp_path, keep=0.1)
    facts = export(after, tmp_path / "export")
    expected = centred(tiny.answers(after, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    if kind in ("bert", "roberta"):
        assert facts.fused["Attention"] == 3


@pytest.mark.parametrize("plan", ["float", "int8"])
def test_a_shared_matrix_is_once_in_the_exported_file(plan, tmp_path):
    config = BertConfig(
        vocab_size=32, max_position_embeddings=32, hidden_size=64, num_hidden_layers=4,
        num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    whole = tiny.bundle_of(config)
    shared = press(whole, tmp_path, keep=0.01)
    sizes = []
    for name, bundle in (("whole", whole), ("shared", shared)):
        export(quantized(bundle) if plan == "int8" else bundle, tmp_path / name)
        model = onnx.load(str(tmp_path / name / "model.onnx"))
        sizes.append(sum(len(t.raw_data) for t in model.graph.initializer if len(t.dims) > 1))
    one = whole.num_parameters() - shared.num_parameters()
    assert sizes[0] - sizes[1] == one * (1 if plan == "int8" else 4)


def test_a_pruned_weight_stays_zero_in_the_shared_matrix(tmp_path):
    pruned = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.3, training=SHORT), tiny.context(tmp_path)
    )
    places = [m.weight == 0 for m in _matrices(pruned)]
    after = press(pruned, tmp_path, keep=0.5)
    assert after.sparse == pruned.sparse
    for module, place in zip(_matrices(after), places, strict=True):
        assert (module.weight[place] == 0).all()


def test_shared_matrices_are_pruned_once_and_never_cut_apart(tmp_path):
    shared = press(tiny.tiny_bert(), tmp_path, keep=0.5)
    names = masks.prunable(shared.model, embeddings=False, head=False)
    assert len({id(shared.model.get_parameter(name)) for name in names}) == len(names)
    with pytest.raises(TechniqueError, match=r"are one matrix.* put `structure.weight_sharing`"):
        structured.apply(shared, structured.Config(training=SHORT), tiny.context(tmp_path))
    with pytest.raises(TechniqueError, match="shares weights already"):
        press(shared, tmp_path)
    fewer = layer_drop.apply(shared, layer_drop.Config(keep=[0, 1]), tiny.context(tmp_path))
    bundles.save(fewer, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert model_parts.tied(again.model) == model_parts.tied(fewer.model)
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(fewer, TEXTS))


def test_zeros_of_a_shared_matrix_outlive_the_layer_that_names_them(tmp_path):
    bundle = tiny.tiny_bert()
    first, _, last = (part.ffn_input for part in model_parts.layers(bundle.model))
    last.weight = first.weight
    name = "bert.encoder.layer.{}.intermediate.dense.weight"
    bundle.sparse = (name.format(0),)
    fewer = layer_drop.apply(bundle, layer_drop.Config(keep=[1, 2]), tiny.context(tmp_path))
    assert fewer.sparse == (name.format(1),)


def test_matrices_of_unequal_shape_are_not_shared(tmp_path):
    bundle = tiny.tiny_bert()
    model_parts.layers(bundle.model)[1].keep_neurons(range(20))
    after = press(bundle, tmp_path, keep=0.1)
    widths = [part.num_neurons for part in model_parts.layers(after.model)]
    assert widths == [32, 20, 32]
    first, second, third = (part.ffn_input.weight for part in model_parts.layers(after.model))
    assert first is third
    assert first is not second


def test_training_brings_the_shared_model_back(tmp_path):
    after = press(tiny.tiny_bert(), tmp_path, keep=0.1, training=LONG)
    assert accuracy(after) > 0.9


@pytest.mark.parametrize(
    ("bundle", "settings", "reason"),
    [
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
        (tiny.tiny_bert, {"max_distance": 1e-6}, "no two matrices"),
        (tiny.tiny_bert, {"keep": 0.99}, "no two matrices"),
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
        weight_sharing.apply(bundle(), Config(**settings), context)
    assert not list(tmp_path.iterdir())
