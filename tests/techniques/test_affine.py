"""The affine map: against numpy, closed forms and ONNX Runtime's own quantizer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime.quantization import quant_utils

from tasks import affine

GRIDS = [
    affine.grid(kind, symmetric=symmetric, reduce_range=reduced)
    for kind in ("int8", "uint8")
    for symmetric in (True, False)
    for reduced in (True, False)
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
unhurried = settings(max_examples=50, deadline=None)  # on a busy machine
_VALUES = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def test_a_range_worked_by_hand():
    # [−1, 1.55] in 255 steps of 0.01: −1 is 0, 0 is 100, 1.55 is 255
    found = affine.from_range(-1.0, 1.55, affine.grid("uint8", symmetric=False))
    assert float(found.scale) == pytest.approx(0.01)
    assert int(found.zero_point) == 100
    values = torch.tensor([-1.0, -0.996, 0.0, 0.004, 0.006, 1.55, 9.0, -9.0])
    assert found.quantize(values).tolist() == [0, 0, 100, 100, 101, 255, 255, 0]
    assert found.dequantize(torch.tensor([0, 100, 101, 255])).tolist() == pytest.approx(
        [-1.0, 0.0, 0.01, 1.55]
    )
    # the same, signed: every integer 128 lower
    signed = affine.from_range(-1.0, 1.55, affine.grid("int8", symmetric=False))
    assert signed.quantize(values).tolist() == [-128, -128, -28, -28, -27, 127, 127, -128]
    assert torch.equal(signed.rounded(values), found.rounded(values))
    # symmetric: [−1.55, 1.55] in 254 steps, zero in the middle
    middle = affine.from_range(-1.0, 1.55, affine.grid("int8", symmetric=True))
    assert float(middle.scale) == pytest.approx(1.55 / 127)
    assert middle.quantize(torch.tensor([-1.55, 0.0, 1.55, -9.0])).tolist() == [-127, 0, 127, -127]


def test_halves_go_to_the_even_integer():
    found = affine.from_range(-127.0, 127.0, affine.grid("int8", symmetric=True))
    assert found.quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_the_popular_formula_takes_one_over_the_step_for_the_scale():
    # round(x · scale + bias) with scale = 1 / step and bias = zero point is the same map
    values = np.linspace(-1, 1.5, 101, dtype=np.float32)
    found = affine.from_range(-1.0, 1.55, affine.grid("uint8", symmetric=False))
    popular = np.round(values * (1 / 0.01) + 100).clip(0, 255)
    assert np.abs(found.quantize(torch.from_numpy(values)).numpy() - popular).max() <= 1
    wrong = np.round(values * 0.01 + 100).clip(0, 255)  # the step itself: all values are one
    assert set(wrong) == {100}


@every_grid
@unhurried
@given(values=_VALUES)
def test_the_error_is_half_a_step_inside_the_range(grid, values):
    tensor = torch.from_numpy(values)
    found = affine.of(tensor, grid)
    error = (found.rounded(tensor).double() - tensor.double()).abs()
    assert float(error.max()) <= float(found.scale) * 0.5 * (1 + 1e-4)
    integers = found.quantize(tensor)
    assert integers.dtype == grid.dtype
    assert grid.low <= int(integers.min()) <= int(integers.max()) <= grid.high


@every_grid
@unhurried
@given(values=_VALUES)
def test_zero_stays_exactly_zero(grid, values):
    found = affine.of(torch.from_numpy(values), grid)
    assert float(found.rounded(torch.zeros(()))) == 0


@every_grid
@unhurried
@given(values=_VALUES)
def test_what_was_rounded_gives_the_same_map_and_is_not_moved_again(grid, values):
    tensor = torch.from_numpy(values)
    once = affine.of(tensor, grid)
    rounded = once.rounded(tensor)
    again = affine.of(rounded, grid)
    step = float(once.scale)
    assert float((again.rounded(rounded) - rounded).abs().max()) <= 1e-5 * step * 256
    assert torch.equal(again.quantize(rounded), once.quantize(tensor))


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.low != 1], ids=str)
@unhurried
@given(values=_VALUES)
def test_scales_and_integers_are_onnx_runtimes(grid, values):
    kind = np.int8 if grid.low < 0 else np.uint8
    expected_zero, expected_scale = quant_utils.compute_scale_zp(
        values.min(),
        values.max(),
        np.array(grid.low, kind),
        np.array(grid.high, kind),
        symmetric=grid.symmetric,
    )
    found = affine.of(torch.from_numpy(values), grid)
    assert float(found.scale) == pytest.approx(float(expected_scale), rel=1e-6)
    # its own division is by the scale before rounding to float32, which may tip a half
    assert abs(int(found.zero_point) - int(expected_zero)) <= 1
    onnx_type = {np.int8: quant_utils.onnx_proto.TensorProto.INT8}.get(
        kind, quant_utils.onnx_proto.TensorProto.UINT8
    )
    expected = quant_utils.quantize_nparray(
        onnx_type, values, found.scale.numpy(), found.zero_point.numpy(), grid.low, grid.high
    )
    assert np.array_equal(found.quantize(torch.from_numpy(values)).numpy(), expected)


@every_grid
def test_a_channel_is_mapped_as_if_alone(grid):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32))
    values *= torch.logspace(-3, 3, 5)[:, None]
    together = affine.of(values, grid, axis=0)
    across = affine.of(values.T.contiguous(), grid, axis=-1)
    assert torch.equal(across.quantize(values.T), together.quantize(values).T)
    for row in range(5):
        alone = affine.of(values[row], grid)
        assert torch.equal(together.scale[row], alone.scale)
        assert torch.equal(together.zero_point[row], alone.zero_point)
        assert torch.equal(together.rounded(values)[row], alone.rounded(values[row]))
    coarse = affine.of(values, grid).rounded(values)
    small = values[0].abs().max()
    assert (together.rounded(values)[0] - values[0]).abs().max() < small / 50
    assert (coarse[0] - values[0]).abs().max() > small / 2  # one scale for all drowns the least


@every_grid
def test_nothing_but_zeros_has_a_map_too(grid):
    found = affine.of(torch.zeros(3, 4), grid, axis=0)
    assert found.scale.tolist() == [1, 1, 1]
    assert torch.equal(found.rounded(torch.zeros(3, 4)), torch.zeros(3, 4))
