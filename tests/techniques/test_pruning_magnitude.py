"""Magnitude pruning: exact masks, the cubic schedule, zeros that stay."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torch.nn.utils import prune

from tasks.errors import TechniqueError
from tasks.pruning import magnitude
from tasks.training.progress import Silent
from tests import tiny
from tests.techniques.contract import SHORT, Contract, same_weights, zeros


def _prove(before, after, config):
    names = magnitude.prunable(before.model, embeddings=config.embeddings, head=config.head)
    assert set(names) == set(after.sparse)
    assert zeros(before, names)[0] == 0
    if config.scope == "global":
        found, total = zeros(after, names)
        assert found == round(config.sparsity * total)
    else:
        for name in names:
            found, total = zeros(after, [name])
            assert found == round(config.sparsity * total)


CONTRACT = Contract(
    good=(
        {"sparsity": 0.5, "interval": 2, "training": SHORT},
        {"sparsity": 0.75, "scope": "layer", "ramp": 0, "training": SHORT},
        {"sparsity": 0.3, "embeddings": True, "head": True, "ramp": 1, "training": SHORT},
    ),
    bad=(
        ({}, "sparsity"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.0}, "greater than 0"),
        ({"sparsity": "much"}, "valid number"),
        ({"sparsity": 0.5, "scope": "matrix"}, "'global' or 'layer'"),
        ({"sparsity": 0.5, "ramp": 1.5}, "less than or equal to 1"),
        ({"sparsity": 0.5, "interval": 0}, "greater than or equal to 1"),
    ),
    prove=_prove,
)


def _model(*weights: np.ndarray) -> nn.Module:
    model = nn.Module()
    for number, weight in enumerate(weights):
        model.register_parameter(f"w{number}", nn.Parameter(torch.from_numpy(weight.copy())))
    return model


_WEIGHTS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-2, 2, width=16).filter(lambda x: x != 0),  # few values: many ties
)


@settings(deadline=None)
@given(
    weights=st.lists(_WEIGHTS, min_size=1, max_size=3),
    share=st.floats(0.01, 0.99),
    scope=st.sampled_from(["global", "layer"]),
)
def test_masks_hit_the_sparsity_to_one_weight(weights, share, scope):
    model = _model(*weights)
    names = [name for name, _ in model.named_parameters()]
    magnitude.zero_smallest(model, names, share, scope)
    after = [model.get_parameter(name).detach().numpy() for name in names]
    pairs = [(old.ravel(), new.ravel()) for old, new in zip(weights, after, strict=True)]
    if scope == "global":
        pairs = [tuple(np.concatenate(side) for side in zip(*pairs, strict=True))]
    for old, new in pairs:
        assert (new == 0).sum() == round(share * old.size)
        assert np.array_equal(new[new != 0], old[new != 0])
        if (new == 0).any() and (new != 0).any():
            assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_equal_those_of_torch(scope):
    random = np.random.default_rng(0)
    weights = [random.normal(size=(12, 7)), 3 * random.normal(size=(5, 9))]
    ours = _model(*weights)
    magnitude.zero_smallest(ours, ["w0", "w1"], 0.37, scope)
    theirs = _model(*weights)
    if scope == "global":
        prune.global_unstructured(
            [(theirs, "w0"), (theirs, "w1")], pruning_method=prune.L1Unstructured, amount=0.37
        )
    else:
        prune.l1_unstructured(theirs, "w0", amount=0.37)
        prune.l1_unstructured(theirs, "w1", amount=0.37)
    for name in ("w0", "w1"):
        assert torch.equal(ours.get_parameter(name), getattr(theirs, name))


def test_the_schedule_is_cubic():
    # s_f·(1 − (1 − t/T)³) from 0 to 0.8 over T = 10: a half of the way is 7/8 of the rise
    assert magnitude.scheduled(0, 10, 0.0, 0.8) == 0
    assert magnitude.scheduled(5, 10, 0.0, 0.8) == pytest.approx(0.7)
    assert magnitude.scheduled(5, 10, 0.4, 0.8) == pytest.approx(0.75)
    assert magnitude.scheduled(10, 10, 0.4, 0.8) == 0.8
    assert magnitude.scheduled(15, 10, 0.4, 0.8) == 0.8


def test_biases_norms_embeddings_and_head_are_kept_by_default():
    names = magnitude.prunable(tiny.tiny_bert().model, embeddings=False, head=False)
    assert len(names) == 3 * 6
    assert all(name.startswith("bert.encoder.layer.") for name in names)
    assert all(name.endswith(".weight") and "LayerNorm" not in name for name in names)
    more = magnitude.prunable(tiny.tiny_bert().model, embeddings=True, head=True)
    added = {"classifier.weight", "bert.pooler.dense.weight"} | {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert set(more) - set(names) == added


def test_the_sparsity_rises_step_by_step_and_zeros_stay(tmp_path):
    bundle = tiny.tiny_bert()
    config = magnitude.Config(sparsity=0.6, interval=1, ramp=1, training=SHORT)
    seen: list[tuple[float, set[int]]] = []
    pruner = magnitude._Pruner

    class Watched(pruner):
        def __call__(self, model, step, total):
            super().__call__(model, step, total)
            weights = torch.cat([model.get_parameter(n).flatten() for n in self.names])
            zero = set(torch.nonzero(weights == 0).flatten().tolist())
            seen.append((len(zero) / len(weights), zero))

    magnitude._Pruner = Watched
    try:
        magnitude.apply(bundle, config, tiny.context(tmp_path))
    finally:
        magnitude._Pruner = pruner
    assert len(seen) == 8
    for step, (share, _) in enumerate(seen, start=1):
        assert share == pytest.approx(0.6 * (1 - (1 - step / 8) ** 3), abs=1e-3)
    assert all(early <= late for (_, early), (_, late) in pairwise(seen))


class _Killer(Silent):
    """Ends the training after some steps, as a kill would."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done: list[int] = []

    def advance(self, steps, *, loss=None, rate=None):
        self.done.append(steps)
        if sum(self.done) >= self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("ramp", [0, 0.75])
def test_a_killed_pruning_resumes_to_the_same_weights(ramp, tmp_path):
    training = {**SHORT, "checkpoint_seconds": 1e-6}
    config = magnitude.Config(sparsity=0.6, interval=2, ramp=ramp, training=training)
    whole = magnitude.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        magnitude.apply(tiny.tiny_bert(), config, replace(context, progress=_Killer(5)))
    resumed = _Killer(9)
    again = magnitude.apply(tiny.tiny_bert(), config, replace(context, progress=resumed))
    assert resumed.done == [4, 1, 1, 1, 1]  # eight steps in all, four of them not done again
    assert same_weights(whole, again)


def test_a_second_pruning_starts_where_the_first_ended(tmp_path):
    first = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.5, training=SHORT), tiny.context(tmp_path)
    )
    second = magnitude.apply(
        first, magnitude.Config(sparsity=0.8, training=SHORT), tiny.context(tmp_path / "second")
    )
    _prove(tiny.tiny_bert(), second, magnitude.Config(sparsity=0.8))
    for name in second.sparse:
        assert (second.model.get_parameter(name)[first.model.get_parameter(name) == 0] == 0).all()
    with pytest.raises(TechniqueError, match=r"80\.\d% zeros already"):
        magnitude.apply(second, magnitude.Config(sparsity=0.7), tiny.context(tmp_path / "third"))
