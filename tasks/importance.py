"""How much the loss depends on a part: scores of heads and FFN neurons.

A gate ξ = 1 multiplies the output of every part. Removing the part sets its gate to 0, and to
first order changes the loss of an example x by ∂L(x)/∂ξ, so the score of a part is

    I = Σ_x |∂L(x)/∂ξ|,    ∂L/∂ξ = Σ activation × ∂L/∂activation

(heads: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2; the same Taylor
criterion: Molchanov et al. 2017 and 2019). The sum runs over the part's values and over positions
before the absolute value is taken, and over examples after it. Other criteria:

    fisher:    I = Σ_x (∂L(x)/∂ξ)²    the diagonal of the empirical Fisher information, which
               stands for the Hessian in the second-order change (Theis et al. 2018, "Faster gaze
               prediction with dense networks and Fisher pruning"; Kwon et al. 2022)
    magnitude: I = ‖w‖₂    over all weights and biases that are removed with the part (Li et al.
               2017, "Pruning Filters for Efficient ConvNets", with L2 for L1); reads no data
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.model_parts import Layer, layers
from tasks.technique import Context
from tasks.training.batches import Batch, Encoded, Examples

Criterion = Literal["first_order", "fisher", "magnitude"]


@dataclass(frozen=True)
class Importance:
    """float64 scores, one tensor a layer (or, of `example_gradients`, a row for each example)."""

    heads: list[torch.Tensor]
    """(heads,) each."""
    neurons: list[torch.Tensor]
    """(neurons,) each."""


def calibration(context: Context, count: int) -> Examples:
    """Return up to `count` training examples to measure on, chosen by the seed.

    Raises TechniqueError where there are none.
    """
    if len(context.train) == 0:
        raise TechniqueError("there are no training texts to measure on: give more data")
    return context.train.sample(count, context.seed)


def score(
    bundle: Bundle, examples: Examples, device: torch.device, criterion: Criterion
) -> Importance:
    """Return the importance of every head and neuron by `criterion`.

    The model may be moved to `device` and is not changed. Raises TechniqueError where its layers
    are unknown.
    """
    if criterion == "magnitude":
        return magnitudes(layers(bundle.model))
    return first_order(bundle, examples, device, power=1 if criterion == "first_order" else 2)


def first_order(
    bundle: Bundle,
    examples: Examples,
    device: torch.device,
    batch_size: int = 32,
    *,
    power: int = 1,
) -> Importance:
    """Return Σ_x |∂L(x)/∂ξ|^power of every head and neuron over labelled `examples`.

    The model is moved to `device` and not changed. Raises TechniqueError where its layers are
    unknown.
    """
    parts = layers(bundle.model)
    found = Importance(
        [torch.zeros(part.num_heads, dtype=torch.float64) for part in parts],
        [torch.zeros(part.num_neurons, dtype=torch.float64) for part in parts],
    )
    for batch in labelled_batches(bundle, examples, device, batch_size):
        heads, neurons = gate_gradients(bundle.model, parts, batch)
        for total, gradient in zip((*found.heads, *found.neurons), (*heads, *neurons), strict=True):
            total += gradient.double().abs().pow(power).sum(0).cpu()
    return found


def example_gradients(bundle: Bundle, examples: Examples, device: torch.device) -> Importance:
    """Return ∂L(x)/∂ξ of every example: float32 on the CPU, (examples, parts) for each layer.

    The order of the examples is that of `Encoded.ordered`. The model is moved to `device` and not
    changed. Raises TechniqueError where its layers are unknown.
    """
    parts = layers(bundle.model)
    batches = [
        [
            gradient.float().cpu()
            for found in gate_gradients(bundle.model, parts, batch)
            for gradient in found
        ]
        for batch in labelled_batches(bundle, examples, device)
    ]
    whole = [torch.cat(pieces) for pieces in zip(*batches, strict=True)]
    return Importance(whole[: len(parts)], whole[len(parts) :])


def labelled_batches(
    bundle: Bundle, examples: Examples, device: torch.device, batch_size: int = 32
) -> Iterator[Batch]:
    """Yield `examples` in batches on `device`, where the model is moved, in evaluation mode.

    While it goes on, no weight asks for a gradient: only gates do.
    """
    model = bundle.model.to(device).eval()
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    with _frozen(model):
        for indices in encoded.ordered(batch_size):
            yield {k: v.to(device) for k, v in encoded.batch(indices).items()}


def magnitudes(parts: Sequence[Layer]) -> Importance:
    """Return the L2 norm of the weights and biases that are removed with each head and neuron."""
    found = Importance([], [])
    for part in parts:
        rows = torch.zeros(part.num_heads * part.head_size, dtype=torch.float64)
        for projection in part.projections:  # of one that holds several side by side, each counts
            rows += squares(projection, "outputs").view(-1, len(rows)).sum(0)
        rows += squares(part.attention_output, "inputs")
        found.heads.append(rows.view(part.num_heads, -1).sum(1).sqrt())
        neurons = squares(part.ffn_input, "outputs") + squares(part.ffn_output, "inputs")
        found.neurons.append(neurons.sqrt())
    return found


def squares(module: nn.Module, side: Literal["inputs", "outputs"]) -> torch.Tensor:
    """Return Σ w² of a linear module for each of its inputs or outputs, with its bias; float64."""
    assert isinstance(module.weight, nn.Parameter)
    along_rows = isinstance(module, Conv1D) == (side == "inputs")
    found = module.weight.detach().double().square().sum(1 if along_rows else 0).cpu()
    if side == "outputs" and isinstance(module.bias, nn.Parameter):
        found += module.bias.detach().double().square().cpu()
    return found


def gate_gradients(
    model: nn.Module, parts: Sequence[Layer], batch: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return ∂L(x)/∂ξ of each example x of a labelled batch, at ξ = 1.

    The shapes are (batch, heads) and (batch, neurons), one tensor a layer. L is the cross-entropy
    with the label. A gate of its own for each example gives each example's own gradient in one
    backward pass, since examples of a batch do not touch each other.
    """
    ids = batch["input_ids"]
    heads = [torch.ones(len(ids), p.num_heads, device=ids.device) for p in parts]
    neurons = [torch.ones(len(ids), p.num_neurons, device=ids.device) for p in parts]
    for gate in (*heads, *neurons):
        gate.requires_grad_(True)
    with gated(parts, heads, neurons):
        loss = summed_loss(model, batch)
    gradients = list(torch.autograd.grad(loss, [*heads, *neurons]))
    return gradients[: len(parts)], gradients[len(parts) :]


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy with the labels, summed over the examples of a batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


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
