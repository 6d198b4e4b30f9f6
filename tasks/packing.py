"""Puts packed matrices (`tasks/packed.py`) in the place of a model's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks import masks, model_parts, replacements
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.model_parts import is_linear
from tasks.packed import Packed, PackedEmbedding, PackedLinear
from tasks.quantizable import matrices

STEP = "quantize_packed"
"""The step of an export plan that stores packed matrices as they are."""


def chosen(bundle: Bundle, *, embeddings: bool, head: bool) -> list[str]:
    """Return the names of the modules to pack: those of layers, and the others as asked.

    Raises TechniqueError where a layer is recurrent, weights are not finite, matrices are shared,
    or no linear layer is among them.
    """
    matrices(bundle.model)  # refuses recurrent layers and weights that are not finite
    model_parts.require_untied(bundle.model)
    wanted = masks.prunable(bundle.model, embeddings=embeddings, head=head)
    names = [name.removesuffix(".weight") for name in wanted]
    if not any(is_linear(bundle.model.get_submodule(name)) for name in names):
        raise TechniqueError("the model has no linear layers in its body: set `head: true`")
    return names


def rows(module: nn.Module) -> torch.Tensor:
    """Return a view of a module's weights: (outputs, inputs), or (tokens, columns) of a table."""
    weight = module.get_parameter("weight").detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def fresh(module: nn.Module, bits: int, group: int, offset: float | None) -> Packed:
    """Return what can stand in the place of a linear layer, with its bias, or of a table."""
    count, columns = rows(module).shape
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(count, columns, bits, group, offset)
    bias: Any = module.bias
    made = PackedLinear(count, columns, bits, group, offset, bias=bias is not None)
    made.bias = bias
    return made


def install(bundle: Bundle, parts: Mapping[str, Packed]) -> None:
    """Put the packed `parts` in their places, and their storing in the export plan; in place."""
    for name, part in parts.items():
        replacements.put(bundle.model, name, part)
    gone = {f"{name}.weight" for name in parts}
    bundle.sparse = tuple(name for name in bundle.sparse if name not in gone)
    bundle.export = bundle.export.then(STEP)
