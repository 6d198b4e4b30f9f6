"""Two and three levels: least squares, straight-through gradients, limits, hand-worked examples."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import few_levels, packing
from tasks.few_levels import FewLevelsConfig, Latent, StraightThrough
from tests import tiny


def test_a_small_matrix_by_hand():
    weight = torch.tensor([[0.5, -1.0, 0.0, 2.5], [0.2, 0.2, -0.2, 0.2]])
    found, alpha = few_levels.binary(weight)
    assert found.tolist() == [[1, -1, 1, 1], [1, 1, -1, 1]]
    assert alpha.tolist() == pytest.approx([1.0, 0.2])
    # mean size 1: Δ = 0.7, which 1.0 and 2.5 exceed; of the second row all do
    found, alpha = few_levels.ternary(weight)
    assert found.tolist() == [[0, -1, 0, 1], [1, 1, -1, 1]]
    assert alpha.tolist() == pytest.approx([1.75, 0.2])
    found, alpha = few_levels.ternary(torch.zeros(1, 3))
    assert (found.tolist(), alpha.tolist()) == ([[0, 0, 0]], [0])


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from(["binary", "ternary"]))
def test_scales_are_of_least_squares(seed, columns, kind):
    weight = np.random.default_rng(seed).normal(size=(2, columns))
    found, alpha = getattr(few_levels, kind)(torch.from_numpy(weight))
    for row, levels, scale in zip(weight, found.numpy(), alpha.numpy(), strict=True):
        best = np.linalg.lstsq(levels[:, None].astype(float), row, rcond=None)[0][0]
        assert scale == pytest.approx(best, abs=1e-9)
        if kind == "binary":  # no other signs are better, either
            error = ((row - scale * levels) ** 2).sum()
            for place in range(columns):
                other = levels.astype(float).copy()
                other[place] *= -1
                result = scipy.optimize.minimize_scalar(
                    lambda a, other=other, row=row: ((row - a * other) ** 2).sum()
                )
                assert result.fun >= error - 1e-9


def test_gradients_pass_where_weights_are_within_their_limit():
    weight = torch.tensor([[0.5, -1.0, 0.0, 2.5]], requires_grad=True)
    weights = torch.tensor([[1.0, 10.0, -100.0, 1000.0]])
    limit = torch.tensor([[2.0]])
    (StraightThrough.apply(weight, limit, few_levels.binary, False) * weights).sum().backward()
    assert weight.grad.tolist() == [[1, 10, -100, 0]]
    # the surrogate is a clamp at the limit: its slope by finite differences
    for place, value in enumerate(weight.detach()[0].tolist()):
        up, down = (min(max(value + d, -2.0), 2.0) for d in (1e-3, -1e-3))
        slope = (up - down) / 2e-3 * float(weights[0, place])
        assert float(weight.grad[0, place]) == pytest.approx(slope, abs=1e-6)
    weight.grad = None
    (StraightThrough.apply(weight, limit, few_levels.binary, True) * weights).sum().backward()
    assert weight.grad.tolist() == [[277.75, 277.75, -277.75, 0]]  # one bit each, and a scale


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_latent_weights_stay_within_their_limits(kind):
    bundle = tiny.tiny(kind)
    names = [n for n, m in bundle.model.named_modules() if n.endswith(("query", "c_attn"))]
    before = {name: packing.rows(bundle.model.get_submodule(name)).clone() for name in names}
    config = FewLevelsConfig(limit=1.5)
    latent = Latent(bundle.model, names, few_levels.ternary, config)
    for _ in range(2):
        for name in names:
            rows = packing.rows(bundle.model.get_submodule(name))
            limit = 1.5 * before[name].abs().mean(dim=1, keepdim=True)
            assert (rows.abs() <= limit).all()
            assert (rows.abs() == limit).any()
            rows.mul_(7)  # an update that goes too far
        latent.clip(bundle.model, {})
