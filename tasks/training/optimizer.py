"""AdamW as this project sets it, and its state as plain tensors."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tasks.training.config import TrainingConfig
from tasks.training.depth import layer_rates


def adamw(
    model: nn.Module, config: TrainingConfig, rate_of: Callable[[str], float]
) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: biases and normalization weights are not shrunk.

    Each group holds its factor of the learning rate as `rate`: that of `rate_of` times that of the
    layer. Fused: one pass over the parameters, instead of one per operation.
    """
    of_layer = layer_rates(model, config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            rate = rate_of(name) * of_layer[name]
            groups.setdefault((decay, rate), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "rate": rate}
            for (decay, rate), members in groups.items()
        ],
        lr=config.learning_rate,
        fused=True,
    )


def rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """Return name → the learning rate that a parameter has now; frozen ones are left out."""
    found = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {n: found[id(p)] for n, p in model.named_parameters() if id(p) in found}


def clip(parameters: Iterable[nn.Parameter], longest: float) -> float:
    """Scale all gradients down to a common L2 norm of `longest`, where they exceed it.

    As `torch.nn.utils.clip_grad_norm_`, which rewrites every gradient at every step. Returns the
    norm that they had.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if norm > longest:
        nn.utils.clip_grads_with_norm_(with_gradient, longest, norm)
    return norm.item()


def flat(optimizer: Any) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as `<number of the parameter>.<entry>` → tensor."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_flat(optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimizer over the same parameters the state that `flat` returned."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition(".")
        states.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
