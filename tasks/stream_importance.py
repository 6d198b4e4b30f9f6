"""How much the loss depends on whole layers and on dimensions of the residual stream.

As in `tasks/importance.py` a gate ξ = 1 stands for each part, and its score is Σ_x |∂L(x)/∂ξ|, or
Σ_x (∂L(x)/∂ξ)². At ξ = 0 each gate is exactly the removal:

* a layer f adds what it changes: x + ξ·(f(x) − x), so that 0 skips it;
* a dimension of the stream counts in every norm as much as its gate, with the one gate for all of
  them, so that 0 normalizes over the other dimensions alone and passes nothing on:

    μ = Σ ξ_i·x_i / Σ ξ_i,   v = Σ ξ_i·(x_i − μ)² / Σ ξ_i
    y_i = ξ_i·(γ_i·(x_i − μ) / √(v + ε) + β_i)

* a value of the hidden layer before the classifier is multiplied by its gate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.importance import Criterion, labelled_batches, squares, summed_loss
from tasks.stream import Stream, stream
from tasks.training.batches import Batch, Examples


@dataclass(frozen=True)
class StreamImportance:
    """float64 scores of what runs through the whole model."""

    layers: torch.Tensor
    """(layers,)"""
    dimensions: torch.Tensor
    """(width of the residual stream,)"""
    pooled: torch.Tensor
    """(width of the hidden layer before the classifier,); empty where there is none."""


def score(
    bundle: Bundle, examples: Examples, device: torch.device, criterion: Criterion
) -> StreamImportance:
    """Return the importance of layers and of dimensions by `criterion`.

    The model may be moved to `device` and is not changed. Raises TechniqueError where its parts
    are unknown.
    """
    found = stream(bundle.model)
    if criterion == "magnitude":
        return _magnitudes(bundle.model, found)
    sizes = (len(found.parts), found.width, found.pooled or 0)
    totals = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    power = 1 if criterion == "first_order" else 2
    for batch in labelled_batches(bundle, examples, device):
        for total, gradient in zip(totals, gate_gradients(bundle.model, batch), strict=True):
            total += gradient.double().abs().pow(power).sum(0).cpu()
    return StreamImportance(*totals)


def gate_gradients(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Return ∂L(x)/∂ξ of each example x of a labelled batch, at ξ = 1.

    The shapes are (batch, layers), (batch, width) and (batch, pooled): a gate of its own for each
    example gives each example's own gradient in one backward pass.
    """
    found = stream(model)
    rows, device = len(batch["input_ids"]), batch["input_ids"].device
    sizes = (len(found.parts), found.width, found.pooled or 0)
    dtype = found.classifier.weight.dtype
    gates = [torch.ones(rows, size, device=device, dtype=dtype) for size in sizes]  # type: ignore[arg-type]
    for gate in gates:
        gate.requires_grad_(True)
    with gated(model, *gates):
        loss = summed_loss(model, batch)
    return list(torch.autograd.grad(loss, gates, allow_unused=True, materialize_grads=True))


@contextmanager
def gated(
    model: PreTrainedModel, layers: torch.Tensor, dimensions: torch.Tensor, pooled: torch.Tensor
) -> Iterator[None]:
    """Let layers, dimensions and pooled values count as much as their gates, for a while.

    A gate tensor is (batch, parts), or (1, parts) to hold for every example.
    """
    found = stream(model)
    _, modules = model_parts.layer_list(model)
    hooks = [
        module.register_forward_hook(_partly(layers[:, place, None, None]))
        for place, module in enumerate(modules)
    ]
    wide = dimensions[:, None, :]
    hooks += [norm.register_forward_hook(_weighted(wide)) for norm in found.own_norms]
    if found.projection is not None:  # the one stretch of stream that no norm closes
        hooks.append(found.projection.register_forward_hook(lambda _, __, output: output * wide))
    if found.pooler is not None:
        hooks.append(
            found.classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0] * pooled,))
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _partly(gate: torch.Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        mixed = inputs[0] + gate * (whole - inputs[0])
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return hook


def _weighted(gate: torch.Tensor) -> Any:
    def hook(
        norm: nn.LayerNorm, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        total = gate.sum(-1, keepdim=True)
        centred = inputs[0] - (gate * inputs[0]).sum(-1, keepdim=True) / total
        variance = (gate * centred.square()).sum(-1, keepdim=True) / total
        scaled = centred * torch.rsqrt(variance + norm.eps)
        return gate * (norm.weight * scaled + norm.bias)

    return hook


def _magnitudes(model: PreTrainedModel, found: Stream) -> StreamImportance:
    """Return the L2 norm of the weights and biases that are removed with each part."""
    _, modules = model_parts.layer_list(model)
    layers = [
        sum(float(p.detach().double().square().sum()) for p in module.parameters())
        for module in modules
    ]
    readers = [m for part in found.parts for m in (*part.projections, part.ffn_input)]
    writers = [m for part in found.parts for m in (part.attention_output, part.ffn_output)]
    dimensions = torch.zeros(found.width, dtype=torch.float64)
    for reader in (*readers, found.classifier if found.pooler is None else found.pooler):
        dimensions += squares(reader, "inputs")
    for writer in (*writers, *([found.projection] if found.projection is not None else [])):
        dimensions += squares(writer, "outputs")
    for table in found.tables:
        if isinstance(table, nn.Embedding):  # a factorized one cannot be narrowed in any case
            dimensions += table.weight.detach().double().square().sum(0).cpu()
    for norm in found.own_norms:
        dimensions += (norm.weight.double().square() + norm.bias.double().square()).detach().cpu()
    pooled = torch.zeros(0, dtype=torch.float64)
    if found.pooler is not None:
        pooled = squares(found.pooler, "outputs") + squares(found.classifier, "inputs")
    return StreamImportance(
        torch.tensor(layers, dtype=torch.float64).sqrt(), dimensions.sqrt(), pooled.sqrt()
    )
