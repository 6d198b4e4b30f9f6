"""How long one product with a matrix takes in ONNX Runtime, in float and in few bits."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from tasks.packed import PackedLinear
from tasks.runtime.unpacking import Unpacking

_ROUNDS = 40
_WARMUP = 5
Shape = tuple[int, int, int]
"""Outputs, inputs, and bits a weight; 32 for float."""


def measure(
    shapes: Sequence[Shape], group: int, tokens: int, threads: int
) -> Mapping[Shape, float]:
    """Return the median milliseconds of a product of `tokens` rows, the shapes taking turns."""
    values = {n: np.random.default_rng(n).normal(size=(1, tokens, n)) for _, n, _ in shapes}
    sessions = {shape: _session(*shape, group, threads) for shape in dict.fromkeys(shapes)}
    times: dict[Shape, list[float]] = {shape: [] for shape in sessions}
    for number in range(_WARMUP + _ROUNDS):
        for shape, session in sessions.items():
            given = values[shape[1]].astype(np.float32)
            begin = time.perf_counter()
            session.run(None, {"x": given})
            if number >= _WARMUP:
                times[shape].append((time.perf_counter() - begin) * 1000)
    return {shape: statistics.median(found) for shape, found in times.items()}


def _session(rows: int, columns: int, bits: int, group: int, threads: int) -> Any:
    random = np.random.default_rng(rows + columns)
    if bits == 32:
        matrix = random.normal(size=(columns, rows)).astype(np.float32)
        nodes, constants = [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": matrix}
    else:
        part = PackedLinear(rows, columns, bits, group)
        codes = torch.from_numpy(random.integers(0, 2**bits, size=(rows, columns)))
        part.fill(codes, part.scale, part.scale)
        made = Unpacking("w", part)
        made.product("x", "y", "product")
        nodes, constants = made.nodes, made.constants
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, rows])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
