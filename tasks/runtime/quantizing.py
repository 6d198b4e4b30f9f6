"""Quantizes a fused ONNX model, and proves that it did."""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from tasks.affine import Kind, grid
from tasks.errors import ExportError
from tasks.packed import Packed
from tasks.runtime.fusion import WHOLE, Form, quiet_tools
from tasks.runtime.rewriting import Ranges, Rewriter
from tasks.runtime.sites import Site

DYNAMIC = "quantize_dynamic"
STATIC = "quantize_static"
WEIGHTS = "quantize_weights"
PACKED = "quantize_packed"
FORMS = {
    # a table is looked up in integers, which the fused embedding layer does by its own rounding
    STATIC: Form(embedding=False),
    # and a matrix that three projections share would be dequantized for every text
    WEIGHTS: Form(embedding=False, projections=False),
    PACKED: Form(embedding=False, projections=False),
}
"""How a graph is fused that a step is applied to, where not whole."""
_PRODUCTS = {
    "QAttention": 3,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 1,
    "QGemm": 1,
}
"""Operators that multiply by int8 matrices, and by how many: query, key and value are one."""
_INTEGER = (*_PRODUCTS, "QEmbedLayerNormalization", "DynamicQuantizeLSTM")
_TYPES = ("MatMul", "Attention", "Gemm", "Gather", "EmbedLayerNormalization", "LSTM")
"""Operators whose weights are quantized; none may be left with a float matrix."""
_BYTES = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def form(steps: Collection[tuple[str, Any]]) -> Form:
    """Return how the graph must be fused for the steps of an export plan."""
    return next((FORMS[name] for name, _ in steps if name in FORMS), WHOLE)


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


def quantize_static(
    path: Path,
    module: Any,
    *,
    calls: Mapping[str, int],
    scales: Mapping[str, torch.Tensor],
    ranges: Mapping[str, Any],
    sensitivity: Mapping[str, float],
    fallback: Collection[str],
    embeddings: bool,
    per_channel: bool,
    reduce_range: bool,
) -> None:
    """Quantize weights and activations of the model at `path` in place, by calibrated ranges.

    `module` is the model that was traced, `calls` says how often it used each of its linear
    layers. Weights are rounded by the steps in `scales`; where it has none, by their own range.
    Modules named in `fallback` stay in float; why, `sensitivity` tells who reads the plan.
    Raises ExportError where one that is not named stays so, in the graph or in what the runtime
    makes of it.
    """
    del sensitivity
    model = onnx.load(str(path))
    weights = grid("int8", symmetric=True, reduce_range=reduce_range)
    rewriter = Rewriter(model, module, weights, per_channel=per_channel, scales=scales)
    chosen = _chosen(rewriter, fallback, embeddings=embeddings)
    _require_sites(rewriter, chosen, calls)
    limits: Ranges = {name: (lower, upper) for name, (lower, upper) in ranges.items()}
    rewriter.with_activations(chosen, limits)
    _require_none_left(rewriter, chosen - calls.keys())
    onnx.save(model, str(path))
    _require_running(path, [s for s in rewriter.sites if s.is_product and set(s.modules) <= chosen])


def quantize_weights(
    path: Path,
    module: Any,
    *,
    calls: Mapping[str, int],
    embeddings: bool,
    weight_type: Kind,
    symmetric: bool,
    per_channel: bool,
) -> None:
    """Store the weights of the model at `path` as integers, in place.

    Raises ExportError where a linear layer or a table stayed in float.
    """
    model = onnx.load(str(path))
    rewriter = Rewriter(
        model, module, grid(weight_type, symmetric=symmetric), per_channel=per_channel
    )
    chosen = _chosen(rewriter, (), embeddings=embeddings)
    _require_sites(rewriter, chosen, calls)
    rewriter.weights_only(chosen)
    _require_none_left(rewriter, chosen - calls.keys())
    onnx.save(model, str(path))


def store_packed(
    path: Path, module: Any, parts: Mapping[str, Packed], *, calls: Mapping[str, int]
) -> None:
    """Store the matrices `parts` of the model at `path` in their few bits, in place.

    Raises ExportError where one of them stayed in float.
    """
    model = onnx.load(str(path))
    rewriter = Rewriter(model, module, grid("int8", symmetric=True), per_channel=True)
    _require_sites(rewriter, parts.keys(), calls)
    rewriter.packed(parts)
    _require_none_left(rewriter, parts.keys() - calls.keys())
    onnx.save(model, str(path))


def count(operators: Mapping[str, int]) -> int:
    """Return how many of the operators compute in int8."""
    return sum(operators.get(name, 0) for name in _INTEGER)


def num_packed(model: onnx.ModelProto) -> int:
    """Return how many matrices the model stores in 8 bits."""
    return sum(t.data_type in _BYTES and len(t.dims) >= 2 for t in model.graph.initializer)


def running(path: Path) -> onnx.ModelProto:
    """Return the model at `path` as ONNX Runtime rewrites it for this machine when it loads it."""
    part = path.with_suffix(".running")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(part)
    try:
        onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return onnx.load(str(part))
    finally:
        part.unlink(missing_ok=True)


def _chosen(rewriter: Rewriter, fallback: Collection[str], *, embeddings: bool) -> set[str]:
    """Return the modules to quantize.

    Raises ExportError where one that is to stay in float is none of the model's.
    """
    unknown = sorted(set(fallback) - rewriter.matrices.keys())
    if unknown:
        raise ExportError(f"the export plan leaves `{unknown[0]}` in float, which the model lacks")
    tables = {name for s in rewriter.sites if not s.is_product for name in s.modules}
    return set(rewriter.matrices) - set(fallback) - (set() if embeddings else tables)


def _require_sites(rewriter: Rewriter, chosen: Collection[str], calls: Mapping[str, int]) -> None:
    """Raise ExportError unless the graph shows every use of the linear layers that are chosen."""
    found = Counter(
        name for s in rewriter.sites if set(s.modules) <= set(chosen) for name in s.modules
    )
    lacking = [name for name, times in calls.items() if name in chosen and found[name] < times]
    if lacking:
        raise ExportError(
            f"quantization found {found[lacking[0]]} of {calls[lacking[0]]} uses of layer "
            f"`{lacking[0]}` in the exported graph: name it and those that share its input as "
            "fallback, or none of them"
        )


def _require_none_left(rewriter: Rewriter, tables: Collection[str]) -> None:
    """Raise ExportError where the graph still holds one of the `tables` in float."""
    left = rewriter.left(tables)
    if left:
        raise ExportError(f"quantization left the embedding table `{left[0]}` in float")


def _require_running(path: Path, products: Collection[Site]) -> None:
    """Raise ExportError unless the runtime computes as many products in int8 as were written."""
    nodes = running(path).graph.node
    found = sum(_PRODUCTS.get(node.op_type, 0) for node in nodes)
    wanted = sum(len(site.modules) for site in products)
    if found < wanted:
        there = {node.name for node in nodes if node.op_type in _PRODUCTS}
        left = ", ".join(f"`{s.node.name}`" for s in products if s.node.name not in there)
        raise ExportError(
            f"ONNX Runtime computes {found} of {wanted} linear layers in int8, and in float, which "
            f"was not declared: {left}"
        )


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
