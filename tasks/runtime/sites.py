"""Where a fused graph uses the weights of which PyTorch module, and those weights as integers.

The exporter names a node by the module that it was traced in (`/model/bert/pooler/dense/Gemm`, a
module's second call with `_1` at its name), and a weight that it did not transpose by its
parameter. Every match is checked by its values.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from tasks import affine, model_parts
from tasks.affine import Affine, Grid
from tasks.errors import ExportError

PRODUCTS = ("MatMul", "Gemm", "Attention")
_PLACES = {**dict.fromkeys(PRODUCTS, 1), "Gather": 0}
"""Operators that use a module's weights, and which of their inputs these are."""
_ROOT = "model"
"""What the exported module calls the classifier."""


@dataclass(frozen=True)
class Site:
    """A node that uses the weights of one module, or of three at once (a fused attention)."""

    node: Any
    modules: tuple[str, ...]
    transposed: bool
    """The graph holds the weights as (outputs, inputs)."""

    @property
    def weight(self) -> str:
        """The name of the weights in the graph."""
        return str(self.node.input[_PLACES[self.node.op_type]])

    @property
    def is_product(self) -> bool:
        """Tell a linear layer from an embedding table."""
        return self.node.op_type in PRODUCTS


@dataclass(frozen=True)
class Integers:
    """Weights as integers, laid out as in the graph."""

    values: np.ndarray
    scale: np.ndarray
    """float32, () or (outputs,)."""
    zero_point: np.ndarray
    """Of the type and the shape that go with both."""
    axis: int
    """The dimension of the outputs."""


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of linear layers and embeddings as float32 (inputs, outputs), by name."""
    found = {}
    for name, module in model.named_modules():
        if model_parts.is_linear(module) or isinstance(module, nn.Embedding):
            weight = module.get_parameter("weight").detach().float().cpu()
            found[name] = weight.T if isinstance(module, nn.Linear) else weight
    return found


def parameter(module: str) -> str:
    """Return what the graph calls a module's weights where it holds them as they are."""
    return f"{_ROOT}.{module}.weight"


def find(graph: onnx.GraphProto, weights: Mapping[str, torch.Tensor]) -> list[Site]:
    """Return the sites of `weights` in the graph, in its order.

    Raises ExportError where a node's weights are not those of the module that it is named by.
    """
    floats = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    sites = []
    own: set[str] = set()
    for node in graph.node:  # attentions, last: theirs are the modules that have no node
        place = _PLACES.get(node.op_type)
        if place is None or node.op_type == "Attention" or node.input[place] not in floats:
            continue
        name = _module(node.name.split("/")[1:-1], node.input[place], weights, own)
        if name is not None:
            sites.append(Site(node, (name,), _is_transposed(node)))
            own.add(name)
    for node in graph.node:
        if node.op_type == "Attention" and node.input[1] in floats:
            sites.append(Site(node, _projections(node, weights, own), transposed=False))
    for site in sites:
        _check(site, floats[site.weight], weights)
    order = {node.output[0]: index for index, node in enumerate(graph.node)}
    return sorted(sites, key=lambda site: order[site.node.output[0]])


def maps(
    weights: Mapping[str, torch.Tensor],
    grid: Grid,
    scales: Mapping[str, torch.Tensor],
    *,
    per_channel: bool,
) -> dict[str, Affine]:
    """Return the map of each module's weights: of its `scales`, or else of its own range."""
    found = {}
    for name, matrix in weights.items():
        if name in scales:
            found[name] = affine.of_scale(scales[name], grid, 1)
        else:
            found[name] = affine.of(matrix, grid, 1 if per_channel else None)
    return found


def integers(site: Site, weights: Mapping[str, torch.Tensor], by: Mapping[str, Affine]) -> Integers:
    """Return the weights of a site as integers, each module's by its own map."""
    maps = [by[name] for name in site.modules]
    values = torch.cat(
        [m.quantize(weights[n]) for m, n in zip(maps, site.modules, strict=True)], 1
    ).numpy()
    scales, zeros = [m.scale for m in maps], [m.zero_point for m in maps]
    if len(maps) > 1:  # one scale a channel, at least: the modules' own differ
        widths = [weights[n].shape[1] for n in site.modules]
        scales = [s.expand(width) for s, width in zip(scales, widths, strict=True)]
        zeros = [z.expand(width) for z, width in zip(zeros, widths, strict=True)]
    scale = torch.cat(scales) if scales[0].dim() else scales[0]
    zero_point = torch.cat(zeros) if zeros[0].dim() else zeros[0]
    return Integers(
        values=np.ascontiguousarray(values.T if site.transposed else values),
        scale=scale.numpy(),
        zero_point=zero_point.numpy().astype(values.dtype),
        axis=0 if site.transposed else 1,
    )


def _module(
    scope: list[str], weight: str, known: Mapping[str, torch.Tensor], own: set[str]
) -> str | None:
    """Return the module that a node in `scope` with this weight belongs to.

    The optimizer gives some nodes names of its own: then it is the weight's, and of modules that
    share it the first that has no node yet.
    """
    parts = scope[1:] if scope[:1] == [_ROOT] else scope
    again = [re.sub(r"_\d+$", "", part) for part in parts]
    for name in (".".join(parts), ".".join(again)):
        if name in known:
            return name
    name = weight.removeprefix(f"{_ROOT}.").removesuffix(".weight")
    if name not in known:
        return None
    alike = [n for n, matrix in known.items() if matrix.data_ptr() == known[name].data_ptr()]
    return next((n for n in alike if n not in own), name)


def _projections(node: Any, known: Collection[str], own: set[str]) -> tuple[str, ...]:
    """Return query, key and value of a fused attention: they are left in its scope."""
    parts = node.output[0].split("/")[2:-1]
    for scope in (parts, [re.sub(r"_\d+$", "", part) for part in parts]):
        inside = f"{'.'.join(scope)}."
        found = tuple(name for name in known if name.startswith(inside))
        left = tuple(name for name in found if name not in own)
        if len(found) >= 3:
            # an architecture that fuses some of its repeated layers has nodes for all three, too
            return left if len(left) == 3 else found[:3]
    return ()


def _is_transposed(node: Any) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _check(site: Site, tensor: Any, weights: Mapping[str, torch.Tensor]) -> None:
    found = numpy_helper.to_array(tensor)
    if site.modules:
        expected = torch.cat([weights[name] for name in site.modules], 1).numpy()
        if np.array_equal(found.T if site.transposed else found, expected):
            return
    raise ExportError(
        f"the exported graph's node `{site.node.name}` does not hold the weights of "
        f"{', '.join(site.modules) or 'any layer'}; this is a defect of the export of this "
        "architecture"
    )
