"""What a model must be for its weights to become integers."""

import torch
from torch import nn

from tasks import affine
from tasks.affine import Affine, Grid
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.model_parts import is_linear


def refuse_quantized(bundle: Bundle) -> None:
    """Raise TechniqueError where the bundle's export plan quantizes already."""
    for name, _ in bundle.export.steps:
        if name.startswith("quantize"):
            raise TechniqueError(
                f"the model is quantized already (step `{name}`): leave one quantization in the "
                "recipe"
            )


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers and embedding tables of a model, by name.

    Raises TechniqueError where it has recurrent layers, no linear ones, or weights that are not
    finite.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise TechniqueError(
                f"the weights of the recurrent layer `{name}` are not matrices of their own: use "
                "`quantization.dynamic`"
            )
        if is_linear(module) or isinstance(module, nn.Embedding):
            found[name] = module
    if not any(is_linear(module) for module in found.values()):
        raise TechniqueError("the model has no linear layers to quantize")
    for name, module in found.items():
        if not torch.isfinite(module.get_parameter("weight")).all():
            raise TechniqueError(
                f"the weights of `{name}` are not all finite numbers: train again at a lower "
                "`learning_rate`"
            )
    return found


def weight_map(
    module: nn.Module, grid: Grid, *, per_channel: bool, scale: torch.Tensor | None = None
) -> Affine:
    """Return the map of a linear layer's or a table's weights: one, or one an output channel.

    By their own range, or by a `scale` that was learned, (outputs,) or ().
    """
    axis = 0 if isinstance(module, nn.Linear) else 1
    if scale is not None:
        return affine.of_scale(scale, grid, axis)
    return affine.of(module.get_parameter("weight"), grid, axis if per_channel else None)
