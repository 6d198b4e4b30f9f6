"""Set the weights of least magnitude to zero, gradually, while training goes on.

    zero w where |w| is among the s·N smallest

(Han et al. 2015, "Learning both Weights and Connections". Some texts write max(w, 0), which would
remove the negative weights instead: what is meant is the magnitude.) The sparsity s rises over the
first `ramp` of the training steps, fast at first and slower near the end (Zhu and Gupta 2017,
"To prune, or not to prune", eq. 1):

    s_t = s_f + (s_i − s_f)·(1 − t / (n·Δt))³

A weight once zero stays zero. Zeros alone make no dense runtime faster and no float file smaller;
they make the model compress better.

Applies to every model with linear layers: the matrices of the Transformer layers, and by setting
the embeddings and the head. Biases and norms are kept.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.model_parts import is_linear
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

_BLOCK = 2**20
"""Scores compared at a time, so that comparing takes little memory."""

EFFECT = "zeros"


class Config(Frozen):
    """Settings of magnitude pruning."""

    sparsity: float = Field(gt=0, lt=1)
    """Share of the chosen weights that end at zero; 1 would leave nothing."""
    scope: Literal["global", "layer"] = "global"
    """Rank the weights of all matrices together, or those of each matrix by themselves."""
    embeddings: bool = False
    """Prune the embedding tables too."""
    head: bool = False
    """Prune the pooler and the classifier too."""
    ramp: float = Field(default=0.5, ge=0, le=1)
    """Share of the training steps in which the sparsity rises; 0: all at once, before training."""
    interval: int = Field(default=20, ge=1)
    """Steps between two rises (Δt)."""
    training: TrainingConfig = TrainingConfig()


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle pruned to `config.sparsity`, exact to one weight, and retrained.

    Raises TechniqueError where the model is as sparse already or has no matrices to prune.
    """
    names = prunable(bundle.model, embeddings=config.embeddings, head=config.head)
    start = sparsity(bundle.model, names)
    if start >= config.sparsity:
        raise TechniqueError(
            f"the model has {start:.1%} zeros already: `sparsity` must be above that, "
            f"not {config.sparsity}"
        )
    pressed = bundle.copy()
    pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
    pruner = _Pruner(names, config, start)
    if config.ramp == 0:
        zero_smallest(pressed.model, names, config.sparsity, config.scope)
    fit(
        pressed,
        context.train,
        context.validation,
        config.training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        after_step=pruner if config.ramp > 0 else None,
        keep="last" if config.ramp > 0 else "best",
    )
    return pressed


def prunable(model: nn.Module, *, embeddings: bool, head: bool) -> tuple[str, ...]:
    """Return the names of the matrices to prune: those of layers, and the others as asked.

    Raises TechniqueError where there are none.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            wanted = embeddings
        elif is_linear(module):
            wanted = head or _is_in_layer(name)
        else:
            continue
        if wanted:
            names.append(f"{name}.weight")
    if not names:
        raise TechniqueError("the model has no matrices to prune in its layers")
    return tuple(names)


def _is_in_layer(name: str) -> bool:
    """Tell whether a module lies in a numbered layer, as in `encoder.layer.3.output.dense`."""
    return any(part.isdigit() for part in name.split("."))


def scheduled(step: int, ramp_steps: int, start: float, end: float) -> float:
    """Return the sparsity after `step` of `ramp_steps` (Zhu and Gupta 2017, eq. 1)."""
    return end + (start - end) * (1 - min(step / ramp_steps, 1.0)) ** 3


class _Pruner:
    """Raises the sparsity after the steps of the schedule."""

    def __init__(self, names: tuple[str, ...], config: Config, start: float) -> None:
        self.names = names
        self.config = config
        self.start = start

    def __call__(self, model: nn.Module, step: int, total: int) -> None:
        ramp_steps = max(math.ceil(self.config.ramp * total), 1)
        due = step % self.config.interval == 0 and step < ramp_steps
        if due or step == ramp_steps:
            target = scheduled(step, ramp_steps, self.start, self.config.sparsity)
            zero_smallest(model, self.names, target, self.config.scope)


def sparsity(model: nn.Module, names: Sequence[str]) -> float:
    """Return the share of zeros in the parameters `names`."""
    weights = [model.get_parameter(name) for name in names]
    zeros = sum(int((w == 0).sum()) for w in weights)
    return zeros / sum(w.numel() for w in weights)


@torch.no_grad()
def zero_smallest(
    model: nn.Module, names: Sequence[str], share: float, scope: Literal["global", "layer"]
) -> None:
    """Set round(`share` × weights) weights to zero, in place, the smallest magnitudes first.

    Among equal magnitudes the first ones go. The scores are one copy of the weights in memory.
    """
    weights = [model.get_parameter(name) for name in names]
    for group in [weights] if scope == "global" else [[w] for w in weights]:
        _zero_smallest(group, round(share * sum(w.numel() for w in group)))


def _zero_smallest(weights: Sequence[torch.Tensor], count: int) -> None:
    if count == 0:
        return
    threshold, ties = _threshold(weights, count)
    for weight in weights:
        magnitude = weight.detach().abs().float()
        weight[magnitude < threshold] = 0
        tied = torch.nonzero(magnitude.flatten() == threshold).flatten()[:ties]
        weight.view(-1)[tied] = 0
        ties -= len(tied)


def _threshold(weights: Sequence[torch.Tensor], count: int) -> tuple[float, int]:
    """Return the `count`-th smallest magnitude, and how many as large are among the smallest."""
    scores = np.empty(sum(w.numel() for w in weights), dtype=np.float32)
    start = 0
    for weight in weights:
        place = scores[start : start + weight.numel()]
        np.abs(weight.detach().flatten().float().cpu().numpy(), out=place)
        start += weight.numel()
    scores.partition(count - 1)  # in place: no second copy, as a sort or torch.kthvalue would need
    threshold = float(scores[count - 1])
    blocks = (scores[i : min(i + _BLOCK, count)] for i in range(0, count, _BLOCK))
    return threshold, count - sum(int((block < threshold).sum()) for block in blocks)
