"""Few bits: packed bit by bit, unpacked the same, and unpacked in a graph the same."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tasks.packed import PackedEmbedding, PackedLinear, pack, unpack
from tasks.runtime.unpacking import Unpacking


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 37),
    seed=st.integers(0, 10_000),
)
def test_what_is_packed_comes_out_bit_by_bit(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, size=(rows, columns))
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert np.array_equal(unpack(packed, bits, columns).numpy(), codes)
    for row, line in zip(packed.tolist(), codes.tolist(), strict=True):
        # independent: one long number, the first code in its lowest bits
        whole = sum(code << (bits * place) for place, code in enumerate(line))
        assert int.from_bytes(bytes(row), "little") == whole


def _filled(kind, bits, group, columns, *, asymmetric, rows=6):
    random = np.random.default_rng(bits * columns + group)
    offset = None if asymmetric else 0.5 if bits == 1 else 2.0 ** (bits - 1)
    made = kind(rows, columns, bits, group, offset)
    codes = torch.from_numpy(random.integers(0, 2**bits, size=(rows, columns)))
    scale = torch.from_numpy(random.random((rows, made.num_groups)).astype(np.float32) / 2**bits)
    zero = torch.from_numpy(random.integers(0, 2**bits, size=(rows, made.num_groups)))
    made.fill(codes, scale, zero if asymmetric else None)
    middle = zero.repeat_interleave(group, 1)[:, :columns] if asymmetric else offset
    expected = (codes - middle) * scale.repeat_interleave(group, 1)[:, :columns]
    return made, expected.float()


CASES = [
    (1, 5, 5, False), (1, 16, 16, False), (2, 7, 7, False), (4, 16, 48, True), (4, 16, 40, True),
    (4, 8, 20, True), (8, 32, 64, True), (8, 3, 9, True), (4, 32, 33, False), (8, 16, 16, False),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "group", "columns", "asymmetric"), CASES)
def test_weights_are_codes_times_scales_in_torch_and_in_the_runtime(
    bits, group, columns, asymmetric
):
    values = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(1))
    linear, weights = _filled(PackedLinear, bits, group, columns, asymmetric=asymmetric)
    assert torch.allclose(linear.rows_at(), weights, atol=1e-6)
    expected = values @ weights.T + linear.bias
    assert torch.allclose(linear(values), expected, atol=1e-5)
    part = Unpacking("m", linear)
    part.product("x", "y", "node")
    found = _run(part, "x", values.numpy())
    assert np.abs(found - (values @ weights.T).numpy()).max() < 1e-4

    table, weights = _filled(PackedEmbedding, bits, group, columns, asymmetric=asymmetric)
    ids = torch.tensor([[0, 5, 2], [2, 2, 1]])
    assert torch.allclose(table(ids), weights[ids], atol=1e-6)
    part = Unpacking("t", table)
    part.look_up("x", "y")
    assert np.abs(_run(part, "x", ids.numpy()) - weights[ids].numpy()).max() < 1e-5


def _run(part, name, value):
    kind = TensorProto.INT64 if value.dtype == np.int64 else TensorProto.FLOAT
    graph = helper.make_graph(
        part.nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, value.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in part.constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {name: value})[0]


def test_groups_of_powers_of_two_are_multiplied_as_they_lie():
    assert Unpacking("m", PackedLinear(4, 32, 4, 16)).multiplies_bits()
    assert Unpacking("m", PackedLinear(4, 32, 8, 32, 128.0)).multiplies_bits()
    assert not Unpacking("m", PackedLinear(4, 32, 4, 8)).multiplies_bits()
    assert not Unpacking("m", PackedLinear(4, 48, 4, 48)).multiplies_bits()
    assert not Unpacking("m", PackedLinear(4, 32, 1, 32, 0.5)).multiplies_bits()
    assert not Unpacking("m", PackedLinear(4, 32, 4, 32, 7.0)).multiplies_bits()  # zero must be 8
