"""How much the loss depends on a part: first-order scores of heads and FFN neurons.

A gate ξ = 1 multiplies the output of every part. Removing the part sets its gate to 0, and to
first order changes the loss of an example x by ∂L(x)/∂ξ, so the score of a part is

    I = Σ_x |∂L(x)/∂ξ|,    ∂L/∂ξ = Σ activation × ∂L/∂activation

(heads: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2; the same Taylor
criterion: Molchanov et al. 2017 and 2019). The sum runs over the part's values and over positions
before the absolute value is taken, and over examples after it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.bundle import Bundle
from tasks.model_parts import Layer, layers
from tasks.training.batches import Encoded, Examples


@dataclass(frozen=True)
class Importance:
    """float64 scores, one tensor a layer."""

    heads: list[torch.Tensor]
    """(heads,) each."""
    neurons: list[torch.Tensor]
    """(neurons,) each."""


def first_order(
    bundle: Bundle, examples: Examples, device: torch.device, batch_size: int = 32
) -> Importance:
    """Return the first-order importance of every head and neuron over labelled `examples`.

    The model is moved to `device` and not changed. Raises TechniqueError where its layers are
    unknown.
    """
    model = bundle.model.to(device).eval()
    parts = layers(model)
    found = Importance(
        [torch.zeros(part.num_heads, dtype=torch.float64) for part in parts],
        [torch.zeros(part.num_neurons, dtype=torch.float64) for part in parts],
    )
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    with _frozen(model):
        for indices in encoded.ordered(batch_size):
            batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
            heads, neurons = gate_gradients(model, parts, batch)
            for total, gradient in zip(found.heads, heads, strict=True):
                total += gradient.abs().sum(0).double().cpu()
            for total, gradient in zip(found.neurons, neurons, strict=True):
                total += gradient.abs().sum(0).double().cpu()
    return found


def gate_gradients(
    model: nn.Module, parts: Sequence[Layer], batch: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return ∂L(x)/∂ξ of each example x of a labelled batch, at ξ = 1.

    The shapes are (batch, heads) and (batch, neurons), one tensor a layer. L is the cross-entropy
    with the label. A gate of its own for each example gives each example's own gradient in one
    backward pass, since examples of a batch do not touch each other.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    heads = [torch.ones(len(ids), p.num_heads, device=ids.device) for p in parts]
    neurons = [torch.ones(len(ids), p.num_neurons, device=ids.device) for p in parts]
    for gate in (*heads, *neurons):
        gate.requires_grad_(True)
    with gated(parts, heads, neurons):
        logits = model(input_ids=ids, attention_mask=mask).logits
    loss = F.cross_entropy(logits.float(), batch["labels"], reduction="sum")
    gradients = list(torch.autograd.grad(loss, [*heads, *neurons]))
    return gradients[: len(parts)], gradients[len(parts) :]


@contextmanager
def gated(
    parts: Sequence[Layer], heads: Sequence[torch.Tensor], neurons: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Multiply the output of every head and neuron by its gate, while the context lasts.

    A gate tensor is (batch, parts), or (1, parts) to hold for every example.
    """
    hooks = []
    for part, head_gate, neuron_gate in zip(parts, heads, neurons, strict=True):
        wide = head_gate.repeat_interleave(part.head_size, dim=1)
        hooks.append(part.attention_output.register_forward_pre_hook(_multiply(wide)))
        hooks.append(part.ffn_output.register_forward_pre_hook(_multiply(neuron_gate)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply(gate: torch.Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * gate[:, None, :], *inputs[1:])

    return hook


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Spare the gradients of the weights while the context lasts: only the gates' are asked."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def choose(
    scores: Sequence[torch.Tensor], keep: float, *, even: bool, multiple: int = 1
) -> list[list[int]]:
    """Return, for each layer, the ascending indices of the parts to keep.

    Parts stay in groups of `multiple`, the best of a layer together; a group is worth the sum of
    its scores, and every layer keeps its best group. round(`keep` × groups) groups stay: of all
    layers ranked together, or, where `even`, the same number in every layer.
    """
    order = [torch.argsort(s, descending=True, stable=True).tolist() for s in scores]
    groups = [[o[i : i + multiple] for i in range(0, len(o), multiple)] for o in order]
    wanted = max(round(keep * sum(map(len, groups))), len(groups))
    if even:
        counts = [min(len(g), max(round(wanted / len(groups)), 1)) for g in groups]
    else:
        # a layer's groups fall in worth, so its share of the best is always its first ones
        worth = sorted(
            (-float(scores[layer][members].sum()), layer)
            for layer, found in enumerate(groups)
            for members in found[1:]
        )
        counts = [1] * len(groups)
        for _, layer in worth[: wanted - len(groups)]:
            counts[layer] += 1
    return [
        sorted(part for members in found[:count] for part in members)
        for found, count in zip(groups, counts, strict=True)
    ]


def normalized(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Divide each layer's scores by their L2 norm (Molchanov et al. 2017, section 2.2)."""
    return [s / s.norm().clamp_min(torch.finfo(s.dtype).tiny) for s in scores]
