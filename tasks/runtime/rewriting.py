"""Writes a fused graph's weights as integers, with or without its activations.

What ONNX Runtime computes fast was tried on a MiniLM-L6 shape (AVX-512 with VNNI, 2 threads):

* A pair QuantizeLinear, DequantizeLinear before a MatMul or Gemm and DequantizeLinear behind its
  int8 matrix become MatMulIntegerToFloat and QGemm when the model is loaded. With signed
  activations half of the products stayed in float, three times as slow, so they are unsigned. A
  Gemm is taken only where its bias is an integer too, or absent.
* A fused Attention has no such form: its integer twin QAttention is written at once, with the
  calibrated scale. Splitting it into three MatMuls before a MultiHeadAttention took 14% longer;
  products of queries, keys and values in int8 gained nothing.
* Weights alone: DequantizeLinear before a MatMul becomes MatMulNBits, which keeps the bytes in
  memory as they are, rounds activations to int8 in blocks as it goes, and took 10% less time than
  floats; before a Gemm or an Attention it would run for every text.
* A table is looked up in integers, and the rows found are dequantized.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from tasks.affine import Grid, from_range, grid
from tasks.errors import ExportError
from tasks.packed import Packed
from tasks.runtime import sites
from tasks.runtime.sites import Site
from tasks.runtime.unpacking import Unpacking

ACTIVATIONS = grid("uint8", symmetric=False)
Ranges = Mapping[str, tuple[float, float]]
"""Module → least and greatest value of its input."""


class Rewriter:
    """Replaces the nodes of a graph that use weights, one site at a time."""

    def __init__(
        self,
        model: onnx.ModelProto,
        module: Any,
        weights: Grid,
        *,
        per_channel: bool,
        scales: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.graph = model.graph
        self.matrices = sites.matrices(module)
        self.sites = sites.find(self.graph, self.matrices)
        self.maps = sites.maps(self.matrices, weights, scales, per_channel=per_channel)
        self.constants: dict[str, np.ndarray] = {}
        self.made: set[str] = set()
        """Names of values that a node has been written for."""

    def weights_only(self, chosen: Collection[str]) -> None:
        """Store the weights of the modules `chosen` as integers, and dequantize them."""
        self._replace(chosen, self._dequantized)

    def with_activations(self, chosen: Collection[str], ranges: Ranges) -> None:
        """Quantize the modules `chosen`: the inputs of linear layers by `ranges`, and all weights.

        Raises ExportError where a range is missing.
        """

        def product(site: Site) -> list[Any]:
            lacking = [name for name in site.modules if name not in ranges]
            if lacking:
                raise ExportError(f"the export plan has no range for layer `{lacking[0]}`")
            if site.node.op_type == "Attention":
                return self._attention(site, ranges[site.modules[0]])
            return self._product(site, ranges[site.modules[0]])

        self._replace(chosen, product)

    def packed(self, parts: Mapping[str, Packed]) -> None:
        """Store the matrices of the modules `parts` in their few bits, and unpack them."""

        def stored(site: Site) -> list[Any]:
            (name,) = site.modules
            made = Unpacking(f"{name}_{site.node.output[0]}", parts[name])
            if site.is_product:
                bias = site.node.input[2] if len(site.node.input) > 2 else ""
                output = site.node.output[0]
                product = f"{output}_product" if bias else output
                made.product(site.node.input[0], product, site.node.name)
                if bias:
                    made.nodes.append(helper.make_node("Add", [product, bias], [output]))
            else:
                made.look_up(site.node.input[1], site.node.output[0])
            for key, value in made.constants.items():
                self._constant(key, value)
            return made.nodes

        self._replace(parts.keys(), stored, stored)

    def _replace(
        self,
        chosen: Collection[str],
        product: Callable[[Site], list[Any]],
        table: Callable[[Site], list[Any]] | None = None,
    ) -> None:
        table = table or self._table
        found = {s.node.output[0]: s for s in self.sites if set(s.modules) <= set(chosen)}
        nodes = []
        for node in self.graph.node:
            site = found.get(node.output[0])
            if site is None:
                nodes.append(node)
            else:
                nodes += product(site) if site.is_product else table(site)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        kept += [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def left(self, tables: Collection[str]) -> list[str]:
        """Return those of the `tables` that the graph holds in float."""
        there = {tensor.name for tensor in self.graph.initializer}
        return [name for name in tables if sites.parameter(name) in there]

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.setdefault(name, value)
        return name

    def _integers(self, site: Site) -> tuple[list[str], int]:
        """Return the names of integers, scale and zero point of a site's weights, and their axis.

        A matrix that several nodes share is stored once.
        """
        found = sites.integers(site, self.matrices, self.maps)
        parts = {"": found.values, "_scale": found.scale, "_zero_point": found.zero_point}
        names = [self._constant(f"{site.weight}_int8{k}", v) for k, v in parts.items()]
        return names, found.axis

    def _weights(self, site: Site) -> tuple[str, list[Any]]:
        """Return the name of a site's weights, dequantized, and the node that makes them."""
        names, axis = self._integers(site)
        output = f"{names[0]}_dequantized"
        return output, self._once("DequantizeLinear", names, output, axis=axis)

    def _once(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> list[Any]:
        if output in self.made:
            return []
        self.made.add(output)
        return [helper.make_node(kind, inputs, [output], output, **attributes)]

    def _quantized(self, name: str, limits: tuple[float, float]) -> tuple[list[str], list[Any]]:
        """Return the names of an activation's integers, scale and zero point, and the new nodes."""
        found = from_range(*limits, ACTIVATIONS)
        stem = f"{name}_{limits[0]:.9g}_{limits[1]:.9g}"  # a shared tensor may have two ranges
        scale = self._constant(f"{stem}_scale", found.scale.numpy())
        zero = self._constant(f"{stem}_zero_point", found.zero_point.numpy().astype(np.uint8))
        parts = [f"{stem}_quantized", scale, zero]
        return parts, self._once("QuantizeLinear", [name, scale, zero], parts[0])

    def _product(self, site: Site, limits: tuple[float, float]) -> list[Any]:
        node = site.node
        parts, before = self._quantized(node.input[0], limits)
        activation = f"{parts[0]}_dequantized"
        before += self._once("DequantizeLinear", parts, activation)
        matrix, more = self._weights(site)
        return [*before, *more, *_renewed(node, activation, matrix)]

    def _attention(self, site: Site, limits: tuple[float, float]) -> list[Any]:
        node = site.node
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if "qkv_hidden_sizes" in attributes or any(node.input[4:]):
            raise ExportError(
                f"the fused attention `{node.name}` has no form in int8 with unequal widths, a "
                "past or a bias of positions: leave its projections in float"
            )
        (values, scale, zero), before = self._quantized(node.input[0], limits)
        (matrix, matrix_scale, matrix_zero), _ = self._integers(site)
        mask = node.input[3] if len(node.input) > 3 else ""
        inputs = [values, matrix, node.input[2], scale, matrix_scale, mask, zero, matrix_zero]
        return [
            *before,
            helper.make_node(
                "QAttention", inputs, list(node.output), node.name,
                domain="com.microsoft", **attributes,
            ),
        ]  # fmt: skip

    def _dequantized(self, site: Site) -> list[Any]:
        node = site.node
        if node.op_type != "Gemm":
            matrix, before = self._weights(site)
            node.input[1] = matrix
            return [*before, node]
        # only a MatMul takes its matrix in integers: the Gemm is written as one, with its sum
        untransposed = Site(node, site.modules, transposed=False)
        matrix, before = self._weights(untransposed)
        return [*before, *_renewed(node, node.input[0], matrix, kind="MatMul")]

    def _table(self, site: Site) -> list[Any]:
        node = site.node
        (table, scale, zero), _ = self._integers(site)
        rows = f"{node.output[0]}_int8"
        return [
            helper.make_node("Gather", [table, node.input[1]], [rows], node.name),
            helper.make_node(
                "DequantizeLinear", [rows, scale, zero], list(node.output),
                f"{node.name}_dequantized", axis=-1,
            ),
        ]  # fmt: skip


def _renewed(node: Any, values: str, matrix: str, kind: str | None = None) -> list[Any]:
    """Return a product with new inputs; a Gemm's bias is added by a node of its own."""
    bias = node.input[2] if len(node.input) > 2 else ""
    output = f"{node.output[0]}_product" if bias else node.output[0]
    kind = kind or node.op_type
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    # a factor other than 1 is never traced from a linear layer
    assert all(attributes.get(factor, 1) == 1 for factor in ("alpha", "beta"))
    if kind != "Gemm":
        attributes = {}
    nodes = [helper.make_node(kind, [values, matrix], [output], node.name, **attributes)]
    if bias:
        nodes.append(helper.make_node("Add", [output, bias], [node.output[0]], f"{node.name}_bias"))
    return nodes
