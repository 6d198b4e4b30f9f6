"""Prune with an importance fixed beforehand: some groups of weights are dearer than others.

    score(w) = γ(w) · c(w),    γ(w) = Π of the factors whose pattern matches w's parameter

c is the criterion: |w| (Han et al. 2015, "Learning both Weights and Connections"), or the
first-order Taylor score Σ |w · ∂L/∂w| (Molchanov et al. 2019, "Importance Estimation for Neural
Network Pruning"; `tasks/saliency.py`). The settings' `weights` give the factors:

    head: true
    weights: {"*.layer.0.*": 2, "classifier.*": 2}

keeps the first layer and the classifier twice as dear: of them a weight goes where one half its
worth would go elsewhere. The lowest scores of all matrices ranked together become zero, in rounds
of pruning and training, each of which takes the same share of the weights that are left. There is
no ranking of each matrix by itself: a factor could change nothing in it. A weight once zero stays
zero. Zeros alone make no dense runtime faster and no float file smaller.

Applies to every model with linear or LSTM layers: the matrices of the layers, and by setting the
embeddings and the head. Biases and norms are kept.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from tasks import masks
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.saliency import taylor
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "zeros"


class Config(Frozen):
    """Settings of weighted pruning."""

    sparsity: float = Field(gt=0, lt=1)
    """Share of the chosen weights that end at zero; 1 would leave nothing."""
    weights: dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=1e-6, le=1e6)]] = (
        Field(min_length=1)
    )
    """Pattern of parameter names (`*` any text, `?` one character) → factor of the criterion.
    Above 1 is dearer, below 1 cheaper; factors of several patterns that match are multiplied."""
    criterion: Literal["magnitude", "gradient"] = "magnitude"
    """What the factors multiply: the weight's size, or how much the loss depends on it."""
    embeddings: bool = False
    """Prune the embedding tables too."""
    head: bool = False
    """Prune the pooler and the classifier too."""
    rounds: int = Field(default=1, ge=1, le=100)
    """Times that weights go and `training` is done."""
    importance_examples: int = Field(default=512, ge=1)
    """Training examples that gradients are taken on, for `criterion: gradient`."""
    importance_batch_size: int = Field(default=16, ge=1, le=4096)
    """Of them in one batch, within which gradients of unlike sign cancel."""
    training: TrainingConfig = TrainingConfig()


def _leaves(config: Config) -> tuple[str, ...]:
    return ("pruned weights", *(("pruned embeddings",) if config.embeddings else ()))


LEAVES = _leaves


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle pruned to `config.sparsity`, exact to one weight, and retrained.

    Raises TechniqueError where a pattern matches nothing that is pruned, or the model is as sparse
    already or has no matrices to prune.
    """
    names = masks.prunable(bundle.model, embeddings=config.embeddings, head=config.head)
    factors = factors_of(bundle.model, names, config.weights)
    start = masks.starting_sparsity(bundle.model, names, config.sparsity)
    pressed = bundle.copy()
    pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
    for number, target in enumerate(masks.rising(start, config.sparsity, config.rounds)):
        score = _score(pressed, factors, config, context, number)
        masks.zero_lowest(pressed.model, names, target, score=score)
        del score  # as large as the weights: not held while training is on
        fit(
            pressed,
            context.train,
            context.validation,
            config.training,
            seed=context.seed + number,
            device=context.device,
            scratch=context.scratch,
            progress=context.progress,
        )
    return pressed


def factors_of(
    model: nn.Module, names: Sequence[str], weights: Mapping[str, float]
) -> dict[str, float]:
    """Return the factor of each parameter in `names`, the product of all that match it.

    Raises TechniqueError, naming it, for a pattern that matches no parameter of the model, or only
    such as are not pruned.
    """
    everything = [name for name, _ in model.named_parameters()]
    for pattern in weights:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        if any(fnmatchcase(name, pattern) for name in everything):
            raise TechniqueError(
                f"`weights`: `{pattern}` matches only parameters that are not pruned; set `head` "
                "or `embeddings`, or leave it out"
            )
        raise TechniqueError(
            f"`weights`: `{pattern}` matches no parameter of the model; those that are pruned are "
            f"called as `{names[0]}` and `{names[-1]}` are"
        )
    return {
        name: math.prod(f for pattern, f in weights.items() if fnmatchcase(name, pattern))
        for name in names
    }


def _score(
    pressed: Bundle, factors: Mapping[str, float], config: Config, context: Context, number: int
) -> masks.Score:
    """Return the criterion times the factors, as the model stands in round `number`."""
    if config.criterion == "magnitude":
        return lambda name, weight: masks.magnitude(name, weight) * factors[name]
    found = taylor(
        pressed,
        tuple(factors),
        context.train.sample(config.importance_examples, context.seed + number),
        context.device,
        config.importance_batch_size,
    )

    def score(name: str, _weight: torch.Tensor) -> torch.Tensor:
        return found[name] * factors[name]

    return score
