"""Quantizes a fused ONNX model, and proves that it did."""

import os
from collections.abc import Mapping
from pathlib import Path

import onnx

from tasks.errors import ExportError
from tasks.runtime.fusion import quiet_tools

DYNAMIC = "quantize_dynamic"
_PRODUCTS = {"QAttention": 3, "MatMulInteger": 1}
"""Operators that multiply by int8 matrices, and by how many: query, key and value are one."""
_INTEGER = (*_PRODUCTS, "QEmbedLayerNormalization", "DynamicQuantizeLSTM")
_TYPES = ("MatMul", "Attention", "Gemm", "Gather", "EmbedLayerNormalization", "LSTM")
"""Operators whose weights are quantized; none may be left with a float matrix."""


def quantize_dynamic(
    path: Path, *, num_products: int, per_channel: bool, weight_type: str, reduce_range: bool
) -> None:
    """Quantize the weights of the model at `path` in place; activations follow at run time.

    Raises ExportError where a matrix stayed in float, or where fewer than `num_products` linear
    layers became products of integers.
    """
    part = path.with_suffix(".part")
    kind = {"int8": "QInt8", "uint8": "QUInt8"}[weight_type]
    try:
        with quiet_tools():
            from onnxruntime import quantization

            quantization.quantize_dynamic(
                str(path),
                str(part),
                op_types_to_quantize=list(_TYPES),
                per_channel=per_channel,
                reduce_range=reduce_range,
                weight_type=quantization.QuantType[kind],
                # the fused operators are unknown to shape inference, so types must be told
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        _require_integers(onnx.load(str(part)), num_products)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def count(operators: Mapping[str, int]) -> int:
    """Return how many of the operators compute in int8."""
    return sum(operators.get(name, 0) for name in _INTEGER)


def _require_integers(model: onnx.ModelProto, num_products: int) -> None:
    floats = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    }
    left = [n.op_type for n in model.graph.node if n.op_type in _TYPES and floats & {*n.input}]
    if left:
        raise ExportError(
            f"quantization left {len(left)} matrices in float ({', '.join(sorted(set(left)))})"
        )
    found = sum(_PRODUCTS.get(node.op_type, 0) for node in model.graph.node)
    if found < num_products:
        raise ExportError(
            f"quantization reached {found} of the model's {num_products} linear layers"
        )
