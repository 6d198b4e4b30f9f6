"""Weights by groups: half a step at most to nearest; GPTQ as least squares column by column."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import packing, weight_groups
from tasks.training.progress import Silent
from tasks.weight_groups import Grid, gptq, nearest
from tests import tiny


def _back(grid, codes, scale, zero, columns):
    wide = [part.repeat_interleave(grid.group, 1)[:, :columns] for part in (scale, zero)]
    return ((codes - wide[1]) * wide[0]).numpy(), wide[0].numpy()


@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32]),
    symmetric=st.booleans(),
    columns=st.integers(1, 70),
)
def test_to_nearest_the_error_is_half_a_step_at_most(seed, bits, group, symmetric, columns):
    grid = Grid(bits, group, symmetric)
    weight = np.random.default_rng(seed).normal(size=(3, columns))
    weight[0] = 0
    weight[1] = abs(weight[1])
    codes, scale, zero = nearest(torch.from_numpy(weight), grid)
    assert ((codes >= 0) & (codes < 2**bits)).all()
    found, steps = _back(grid, codes, scale, zero, columns)
    # a zero point is an integer too, so that an end of the range may lie half a step further out
    assert (abs(found - weight) <= steps * (0.5 if symmetric else 1) + 1e-6).all()
    assert not found[0].any()
    inside = abs(found - weight) <= steps * 0.5 + 1e-6
    assert inside.mean() > 0.9
    if symmetric:
        assert (zero == 2 ** (bits - 1)).all()


def _by_least_squares(weight, hessian, grid, damping):
    """Each column rounded, then all that are left solved anew, in plain numpy."""
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    rounded, columns = np.zeros_like(weight), weight.shape[1]
    current = weight.copy()
    for i in range(columns):
        if i % grid.group == 0:
            part = torch.from_numpy(current[:, i : i + grid.group])
            scale, zero = (v.numpy() for v in grid.fit(part))
        code = np.clip(np.rint(current[:, i] / scale) + zero, 0, 2**grid.bits - 1)
        rounded[:, i] = (code - zero) * scale
        done, rest = slice(0, i + 1), slice(i + 1, columns)
        # the best of the free columns for the errors made: H_rr·x = −H_rd·(ŵ − w)_d
        error = (rounded[:, done] - weight[:, done]).T
        moved = np.linalg.solve(hessian[rest, rest], hessian[rest, done] @ error)
        current[:, rest] = weight[:, rest] - moved.T
    return rounded


@pytest.mark.parametrize(("bits", "columns", "symmetric"), [(4, 40, False), (4, 150, True)])
def test_gptq_is_least_squares_column_by_column(bits, columns, symmetric):
    random = np.random.default_rng(3)
    weight = random.normal(size=(4, columns))
    inputs = random.normal(size=(columns, 8)) @ random.normal(size=(8, 400))
    inputs += 0.3 * random.normal(size=inputs.shape)
    hessian = 2 * inputs @ inputs.T
    grid = Grid(bits, 16, symmetric)
    parts = gptq(torch.from_numpy(weight), torch.from_numpy(hessian), grid, 0.01)
    found, _ = _back(grid, *parts, columns)
    assert np.abs(found - _by_least_squares(weight, hessian, grid, 0.01)).max() < 1e-6


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([16, 64]))
def test_gptq_loses_less_of_what_a_layer_gives_than_rounding(seed, group):
    random = np.random.default_rng(seed)
    weight = random.normal(size=(8, 64))
    inputs = random.normal(size=(64, 6)) @ random.normal(size=(6, 300))
    inputs += 0.1 * random.normal(size=inputs.shape)
    grid = Grid(4, group, False)
    hessian = torch.from_numpy(2 * inputs @ inputs.T)
    losses = []
    for parts in (
        gptq(torch.from_numpy(weight), hessian, grid, 0.01),
        nearest(torch.from_numpy(weight), grid),
    ):
        found, _ = _back(grid, *parts, 64)
        losses.append(np.square((found - weight) @ inputs).sum())
    assert losses[0] < losses[1]


def test_what_never_comes_in_is_rounded_to_nearest():
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).double()
    grid = Grid(4, 16, False)
    found = gptq(weight, torch.zeros(32, 32, dtype=torch.float64), grid, 0.01)
    for one, other in zip(found, nearest(weight, grid), strict=True):
        assert torch.allclose(one, other)


def test_inputs_are_those_of_real_tokens_and_of_layers_rounded_before():
    bundle = tiny.tiny_bert()
    examples = tiny.examples(12)
    name = "bert.encoder.layer.0.attention.self.query"
    found = weight_groups._gram(bundle, bundle.model.get_submodule(name), examples)
    expected = np.zeros((16, 16))
    for text in examples.texts:  # one at a time, without padding
        ids = bundle.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rows = bundle.model.bert.embeddings(ids)[0].double().numpy()
        expected += 2 * rows.T @ rows
    assert np.allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)

    seen = []
    real = weight_groups._gram
    names = packing.chosen(bundle, embeddings=False, head=False)
    before = {n: packing.rows(bundle.model.get_submodule(n)).clone() for n in names}

    def spy(bundle, module, examples):
        changed = [
            n
            for n, m in bundle.model.named_modules()
            if n in before and not torch.equal(packing.rows(m), before[n])
        ]
        seen.append(len(changed))
        return real(bundle, module, examples)

    weight_groups._gram = spy
    try:
        grid = Grid(4, 16, False)
        weight_groups.compress(bundle, dict.fromkeys(names, grid), examples, 0.01, Silent())
    finally:
        weight_groups._gram = real
    assert seen == [0, 3, 4, 5, 6, 9, 10, 11, 12, 15, 16, 17]


def test_bytes_are_those_that_are_stored():
    for grid in (Grid(4, 16, False), Grid(8, 32, True), Grid(4, 64, True)):
        module = torch.nn.Linear(40, 6)
        made = packing.fresh(module, grid.bits, grid.group, grid.offset)
        stored = made.packed.nbytes + made.scale.nbytes
        stored += 0 if made.zero is None else made.zero.nbytes
        assert grid.bytes(6, 40) == stored
