"""AdamW as this project sets it, and its state as plain tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tasks.training.config import TrainingConfig


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: biases and normalization weights are not shrunk.

    Fused: one pass over the parameters, instead of one per operation.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def clip(parameters: Iterable[nn.Parameter], longest: float) -> None:
    """Scale all gradients down to a common L2 norm of `longest`, where they exceed it.

    As `torch.nn.utils.clip_grad_norm_`, which rewrites every gradient at every step.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if norm > longest:
        nn.utils.clip_grads_with_norm_(with_gradient, longest, norm)


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
