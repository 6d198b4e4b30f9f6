"""The residual stream of a Transformer: how much the loss depends on each unit, and its width.

Every embedding, norm and layer reads and writes the same hidden units, so that a unit can only go
from all of them together. A norm then runs over the units that are left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.training.batches import Encoded, Examples


def width(model: PreTrainedModel) -> int:
    """Return how many hidden units a model has whose layers are known."""
    return model_parts.num_inputs(model_parts.layers(model)[0].projections[0])


def importance(
    bundle: Bundle, examples: Examples, device: torch.device, batch_size: int = 32
) -> torch.Tensor:
    """Return the first-order importance (hidden,) of every unit, in float64.

    As of heads and neurons (`tasks.importance`): Σ_x |∂L(x)/∂ξ|, with one gate ξ = 1 for all
    places at which a layer reads or writes the unit. The model is moved to `device` and not
    changed. Raises TechniqueError where its layers are unknown.
    """
    model = bundle.model.to(device).eval()
    total = torch.zeros(width(model), dtype=torch.float64)
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    for indices in encoded.ordered(batch_size):
        batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
        gate = torch.ones(len(indices), len(total), device=device, requires_grad=True)
        with gated(model, gate):
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        loss = F.cross_entropy(logits.float(), batch["labels"], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [gate])
        total += gradient.abs().sum(0).double().cpu()
    return total


@contextmanager
def gated(model: PreTrainedModel, gate: torch.Tensor) -> Iterator[None]:
    """Multiply what each layer is given, and what the last one gives, by `gate` (batch, hidden)."""
    wide = gate[:, None, :]

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] * wide, *inputs[1:])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return (output[0] * wide, *output[1:]) if isinstance(output, tuple) else output * wide

    _, found = model_parts.layer_list(model)
    hooks = [layer.register_forward_pre_hook(before) for layer in found]
    hooks.append(found[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def keep(model: PreTrainedModel, units: Sequence[int]) -> None:
    """Remove all hidden units but `units` (ascending), in place.

    Raises TechniqueError where the model's layers are unknown.
    """
    assert units
    hidden, index = width(model), torch.as_tensor(units)
    parts = model_parts.layers(model)
    # widths of their own, though they may happen to be as large as the stream
    not_read = {id(m) for part in parts for m in (part.attention_output, part.ffn_output)}
    not_written = {id(m) for part in parts for m in (*part.projections, part.ffn_input)}
    linear = [module for module in model.modules() if model_parts.is_linear(module)]
    not_written.add(id(linear[-1]))  # the logits
    for module in linear:
        if model_parts.num_inputs(module) == hidden and id(module) not in not_read:
            model_parts.keep_inputs(module, index)
        if model_parts.num_outputs(module) == hidden and id(module) not in not_written:
            model_parts.keep_outputs(module, index)
    _keep_embedded(model, hidden, index)


def _keep_embedded(model: PreTrainedModel, hidden: int, index: torch.Tensor) -> None:
    """Cut norms and embedding tables that are as wide as the stream."""
    # ELECTRA's embeddings may have a width of their own, projected to the stream's
    apart = "embeddings." if hasattr(model.base_model, "embeddings_project") else None
    for name, module in model.base_model.named_modules():
        if apart is not None and name.startswith(apart):
            continue
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (hidden,):
            for leaf in ("weight", "bias"):
                model_parts.keep_entries(module, leaf, index, dim=0)
            module.normalized_shape = (len(index),)
        elif isinstance(module, nn.Embedding) and module.embedding_dim == hidden:
            if name.endswith("relative_attention_bias"):  # one value a head
                continue
            model_parts.keep_entries(module, "weight", index, dim=1)
            module.embedding_dim = len(index)
