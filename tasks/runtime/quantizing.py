"""Quantizes a fused ONNX model, and proves that it did."""

import os
from collections.abc import Mapping
from pathlib import Path

import onnx

from tasks.errors import ExportError
from tasks.runtime.fusion import quiet_logging

DYNAMIC = "quantize_dynamic"
_INTEGER = ("QAttention", "MatMulInteger", "DynamicQuantizeMatMul", "QEmbedLayerNormalization")
_FLOAT = ("Attention", "MatMul", "Gemm")
_TYPES = ("MatMul", "Attention", "Gemm", "Gather", "EmbedLayerNormalization")


def quantize_dynamic(
    path: Path, *, per_channel: bool, weight_type: str, reduce_range: bool
) -> None:
    """Quantize the weights of the model at `path` in place; activations follow at run time.

    Raises ExportError where a matrix stayed in float.
    """
    from onnxruntime import quantization

    part = path.with_suffix(".part")
    kind = {"int8": "QInt8", "uint8": "QUInt8"}[weight_type]
    try:
        with quiet_logging():
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
        _require_integers(onnx.load(str(part)))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def count(operators: Mapping[str, int]) -> int:
    """Return how many of the operators compute in int8."""
    return sum(operators.get(name, 0) for name in _INTEGER)


def _require_integers(model: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    left = [
        node.op_type
        for node in model.graph.node
        if node.op_type in _FLOAT and weights.intersection(node.input)
    ]
    if left:
        raise ExportError(
            f"quantization left {len(left)} matrices in float ({', '.join(sorted(set(left)))})"
        )
