"""Masks: exact to one weight, whatever the scores; N:M groups that keep exactly N."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune
from transformers import AlbertConfig
from transformers.pytorch_utils import Conv1D

from tasks import masks
from tasks.errors import TechniqueError
from tests import tiny
from tests.training.test_lstm import tiny_lstm


def model_of(*weights: np.ndarray) -> nn.Module:
    model = nn.Module()
    for number, weight in enumerate(weights):
        model.register_parameter(f"w{number}", nn.Parameter(torch.from_numpy(weight.copy())))
    return model


def _matrices(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)
    return arrays.arrays(np.float32, shapes, elements=elements)


FEW_VALUES = st.floats(-2, 2, width=16)  # many ties, and zeros
ANY_VALUES = st.floats(width=32, allow_nan=False)  # also tiny, huge and infinite ones


@settings(deadline=None)
@given(
    weights=st.lists(_matrices(FEW_VALUES) | _matrices(ANY_VALUES), min_size=1, max_size=3),
    share=st.floats(0.01, 0.99),
    scope=st.sampled_from(["global", "layer"]),
)
def test_masks_hit_the_sparsity_to_one_weight(weights, share, scope):
    model = model_of(*weights)
    names = [name for name, _ in model.named_parameters()]
    masks.zero_lowest(model, names, share, scope)
    after = [model.get_parameter(name).detach().numpy() for name in names]
    pairs = [(old.ravel(), new.ravel()) for old, new in zip(weights, after, strict=True)]
    if scope == "global":
        pairs = [tuple(np.concatenate(side) for side in zip(*pairs, strict=True))]
    for old, new in pairs:
        assert (new == 0).sum() == max(round(share * old.size), (old == 0).sum())
        assert np.array_equal(new[new != 0], old[new != 0])
        if (new == 0).any() and (new != 0).any():
            assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


@settings(deadline=None)
@given(
    scores=_matrices(st.floats(0, 2, width=16)),
    zeros=st.integers(0, 2**81 - 1),
    share=st.floats(0.01, 0.99),
)
def test_scores_that_are_equal_or_none_miss_no_weight(scores, zeros, share):
    # weights without a gradient score as low as those that are zero: the latter must go first
    places = np.arange(scores.size).reshape(scores.shape)
    weight = np.vectorize(lambda i: 0.0 if zeros >> int(i) & 1 else 1.0)(places)
    model = model_of(weight.astype(np.float32))
    masks.zero_lowest(model, ["w0"], share, score=lambda n, w: torch.from_numpy(scores.copy()))
    after = model.get_parameter("w0").detach().numpy()
    assert (after == 0).sum() == max(round(share * weight.size), (weight == 0).sum())
    lost, left = (weight == 1) & (after == 0), after == 1
    if lost.any() and left.any():
        assert scores[lost].max() <= scores[left].min()


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("scored", [False, True])
def test_masks_equal_those_of_torch(scope, scored):
    random = np.random.default_rng(0)
    weights = [random.normal(size=(12, 7)), 3 * random.normal(size=(5, 9))]
    scores = [torch.from_numpy(random.random(w.shape, dtype=np.float32)) for w in weights]
    ours, theirs = model_of(*weights), model_of(*weights)
    given_score = {"w0": scores[0], "w1": scores[1]}
    how = {"score": lambda name, _: given_score[name].clone()} if scored else {}
    masks.zero_lowest(ours, ["w0", "w1"], 0.37, scope, **how)
    if scope == "global":
        prune.global_unstructured(
            [(theirs, "w0"), (theirs, "w1")],
            pruning_method=prune.L1Unstructured,
            importance_scores={(theirs, n): s for n, s in given_score.items()} if scored else None,
            amount=0.37,
        )
    else:
        for name, score in given_score.items():
            prune.l1_unstructured(theirs, name, 0.37, importance_scores=score if scored else None)
    for name in ("w0", "w1"):
        assert torch.equal(ours.get_parameter(name), getattr(theirs, name))


_GROUPS = st.sampled_from([(2, 4), (1, 2), (1, 3), (3, 4), (4, 8)])


@settings(deadline=None)
@given(data=st.data(), shape=_GROUPS, transposed=st.booleans())
def test_every_group_keeps_exactly_n(data, shape, transposed):
    keep, group = shape
    rows, groups = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    weight = data.draw(arrays.arrays(np.float32, (rows, groups * group), elements=FEW_VALUES))
    layer = Conv1D(rows, groups * group) if transposed else nn.Linear(groups * group, rows)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T if transposed else weight))
    pattern = masks.Pattern(keep, group)
    model = nn.Sequential(layer)
    masks.zero_lowest(model, ["0.weight"], pattern.sparsity, pattern=pattern)
    after = layer.weight.detach().numpy()
    after = (after.T if transposed else after).reshape(-1, group)
    before = weight.reshape(-1, group)
    for old, new in zip(before, after, strict=True):
        assert (new != 0).sum() == min(keep, (old != 0).sum())
        assert np.array_equal(new[new != 0], old[new != 0])
        assert np.sort(np.abs(new))[group - keep :].tolist() == (
            np.sort(np.abs(old))[group - keep :].tolist()
        )


def test_2_to_4_masks_equal_those_of_torchs_sparsifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 6))
    before = model[0].weight.detach().clone()
    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    ours = nn.Sequential(nn.Linear(16, 6))
    with torch.no_grad():
        ours[0].weight.copy_(before)
    masks.zero_lowest(ours, ["0.weight"], 0.5, pattern=masks.Pattern(2, 4))
    assert torch.equal(ours[0].weight, model[0].weight)
    assert (ours[0].weight == 0).sum() == 48


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_on_the_way_to_a_pattern_only_what_it_takes_is_zero(scope):
    random = np.random.default_rng(3)
    weights = [random.normal(size=s).astype(np.float32) for s in ((6, 8), (4, 12))]
    pattern = masks.Pattern(2, 4)
    whole, part = model_of(*weights), model_of(*weights)
    masks.zero_lowest(whole, ["w0", "w1"], 0.5, scope, pattern=pattern)
    for share, expected in ((0.2, 19), (0.4, 38), (0.5, 48)):
        masks.zero_lowest(part, ["w0", "w1"], share, scope, pattern=pattern)
        zero = [part.get_parameter(n) == 0 for n in ("w0", "w1")]
        if scope == "global":
            assert sum(int(z.sum()) for z in zero) == expected
        for name, found in zip(("w0", "w1"), zero, strict=True):
            assert (whole.get_parameter(name)[found] == 0).all()
    assert torch.equal(whole.get_parameter("w0"), part.get_parameter("w0"))


def test_zeros_beyond_a_pattern_stay_and_do_not_count_for_it():
    # the first group has three zeros already; the second must lose two all the same
    model = model_of(np.array([[0, 0, 0, 4, 1, 2, 3, 4]], dtype=np.float32))
    pattern = masks.Pattern(2, 4)
    assert masks.sparsity(model, ["w0"]) == 3 / 8
    assert masks.starting_sparsity(model, ["w0"], pattern.sparsity, pattern) == 2 / 8
    masks.zero_lowest(model, ["w0"], pattern.sparsity, pattern=pattern)
    assert model.get_parameter("w0").tolist() == [[0, 0, 0, 4, 0, 0, 3, 4]]
    with pytest.raises(TechniqueError, match="has the pattern 2:4 already"):
        masks.starting_sparsity(model, ["w0"], pattern.sparsity, pattern)


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "2:2", "2:4:8", "-1:4", "a:b", ""])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match="0 < N < M, as in 2:4"):
        masks.Pattern.of(text)


def test_a_pattern_that_does_not_divide_is_refused_with_the_matrix():
    model = tiny.tiny_bert().model
    names = masks.prunable(model, embeddings=False, head=False)
    with pytest.raises(TechniqueError, match=r"query.weight` has 16 inputs, .* groups of 3"):
        masks.starting_sparsity(model, names, 1 / 3, masks.Pattern(2, 3))


def test_rounds_take_equal_shares_of_what_is_left():
    # 1 → 0.8 → 0.64 → 0.512 of the weights: a fifth of those left goes each time
    assert masks.rising(0, 0.488, 3) == pytest.approx([0.2, 0.36, 0.488])
    assert masks.rising(0.5, 0.875, 2) == pytest.approx([0.75, 0.875])
    assert masks.rising(0.1, 0.7, 1) == [0.7]


def test_biases_norms_embeddings_and_head_are_kept_by_default():
    names = masks.prunable(tiny.tiny_bert().model, embeddings=False, head=False)
    assert len(names) == 3 * 6
    assert all(name.startswith("bert.encoder.layer.") for name in names)
    assert all(name.endswith(".weight") and "LayerNorm" not in name for name in names)
    more = masks.prunable(tiny.tiny_bert().model, embeddings=True, head=True)
    added = {"classifier.weight", "bert.pooler.dense.weight"} | {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert set(more) - set(names) == added


def test_shared_layers_are_pruned_once_and_an_lstm_by_its_matrices():
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3,
    )  # fmt: skip
    assert len(masks.prunable(tiny.bundle_of(config).model, embeddings=False, head=False)) == 6
    names = masks.prunable(tiny_lstm(layers=1).model, embeddings=False, head=False)
    assert names == tuple(
        f"{way}.0.weight_{kind}_l0" for way in ("forwards", "backwards") for kind in ("ih", "hh")
    )
    with pytest.raises(TechniqueError, match="no matrices to prune"):
        masks.prunable(nn.LayerNorm(4), embeddings=True, head=True)
