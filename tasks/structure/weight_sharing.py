"""Let similar matrices of several layers become one.

Matrices of one kind and shape are merged two groups at a time, the nearest first. Joining the
groups A and B to their common mean adds this much squared error (Ward 1963, "Hierarchical Grouping
to Optimize an Objective Function"):

    d(A, B) = |A|·|B| / (|A| + |B|) · ‖mean(A) − mean(B)‖² / ē

ē, the mean squared norm of the kind's matrices, makes kinds comparable: d = 1 is the loss of one
matrix whole; two unrelated ones lie about 1 apart, equal ones 0. All from the inner products of the
matrices: none is copied. The layers of a group then hold one and the same parameter, each with its
own biases and norms, and training goes on with it (cross-layer sharing: Lan et al. 2020, "ALBERT",
section 3.1; Dehghani et al. 2019, "Universal Transformers"; which layers share decides much:
Takase and Kiyono 2023, "Lessons on Parameter Sharing across Layers"). A shared matrix is one in
memory, on disk and in the exported file.

Query, key and value of a layer go together, as in the fused attention operator, which holds them
as one matrix. A weight that is pruned in one of the matrices is zero in the shared one.

Applies to BERT and its kin, DistilBERT, MPNet and GPT-2; ALBERT shares from the start and is
refused. Sharing saves size, not time: each layer still multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tasks import model_parts, retraining
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.retraining import Retraining
from tasks.technique import Context

EFFECT = "parameters"
LEAVES = ("shared matrices",)
REFUSES = ("recurrent layers", "shared matrices")
NOTE = "structure.weight_sharing"
Kind = Literal["attention_input", "attention_output", "ffn_input", "ffn_output"]


class Config(Retraining):
    """Settings of weight sharing."""

    keep: float = Field(default=0.5, gt=0, lt=1)
    """Share of the matrices that stay distinct, all kinds ranked together; one a kind at least."""
    max_distance: float | None = Field(default=None, gt=0)
    """Merge none that lie further apart than this, even where more than `keep` then stay."""
    kinds: tuple[Kind, ...] = Field(
        default=("attention_input", "attention_output", "ffn_input", "ffn_output"), min_length=1
    )
    """Which matrices of the layers may be shared."""


@dataclass(frozen=True)
class Family:
    """Matrices of one kind and shape: those that can be one."""

    members: tuple[tuple[nn.Module, ...], ...]
    """Of each layer, the linear modules that go together."""
    products: np.ndarray
    """float64 (members, members): inner products of the matrices."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with similar matrices shared, retrained.

    Raises TechniqueError where the model's parts are unknown or shared already, no two matrices are
    near enough, or the teacher knows other labels.
    """
    model_parts.layers(bundle.model)
    if model_parts.tied(bundle.model):
        raise TechniqueError(
            "the model shares weights already: leave one `structure.weight_sharing` in the recipe"
        )
    train = retraining.prepare(bundle.labels, config, context)
    pressed = bundle.copy()
    families = families_of(pressed, config.kinds)
    groups = grouped([f.products for f in families], config.keep, config.max_distance)
    total, distinct = sum(len(f.members) for f in families), sum(map(len, groups))
    if distinct == total:
        raise TechniqueError(
            "no two matrices of the layers would be shared: raise `max_distance` or lower `keep`"
        )
    pruned = _pruned(pressed)
    for family, parts in zip(families, groups, strict=True):
        for part in parts:
            tie([family.members[i] for i in part], pruned)
    pressed.notes = {**bundle.notes, NOTE: f"{distinct} of {total} matrices stay distinct"}
    train(pressed)
    return pressed


def families_of(bundle: Bundle, kinds: Sequence[Kind]) -> list[Family]:
    """Return the matrices of the kinds named, those of one shape together."""
    found: dict[tuple[str, tuple[torch.Size, ...]], list[tuple[nn.Module, ...]]] = {}
    for layer in model_parts.layers(bundle.model):
        units = {
            "attention_input": layer.projections,
            "attention_output": (layer.attention_output,),
            "ffn_input": (layer.ffn_input,),
            "ffn_output": (layer.ffn_output,),
        }
        for kind in kinds:
            shapes = tuple(_weight(module).shape for module in units[kind])
            found.setdefault((kind, shapes), []).append(units[kind])
    return [Family(tuple(members), _products(members)) for members in found.values()]


@torch.no_grad()
def _products(members: Sequence[tuple[nn.Module, ...]]) -> np.ndarray:
    found = np.zeros((len(members), len(members)))
    for i, one in enumerate(members):
        for j, other in enumerate(members[: i + 1]):
            for first, second in zip(one, other, strict=True):
                pair = _weight(first).double().flatten(), _weight(second).double().flatten()
                found[i, j] += float(torch.dot(*pair))
            found[j, i] = found[i, j]
    return found


def grouped(
    products: Sequence[np.ndarray], keep: float, max_distance: float | None
) -> list[list[list[int]]]:
    """Return, for each family, its members in groups: the nearest merged first.

    round(`keep` × members) groups stay over all families, at least one a family.
    """
    groups = [[[i] for i in range(len(p))] for p in products]
    total = sum(map(len, groups))
    for _ in range(total - max(round(keep * total), len(groups))):
        found = min(
            (
                (distance(p, first, second), family, a, b)
                for family, p in enumerate(products)
                for b, second in enumerate(groups[family])
                for a, first in enumerate(groups[family][:b])
            ),
        )
        if max_distance is not None and found[0] > max_distance:
            break
        _, family, a, b = found
        groups[family][a] = sorted([*groups[family][a], *groups[family].pop(b)])
    return groups


def distance(products: np.ndarray, first: list[int], second: list[int]) -> float:
    """Return Ward's distance of two groups, in squared norms of a matrix."""
    one, other = np.ix_(first, first), np.ix_(second, second)
    between = products[np.ix_(first, second)].mean()
    apart = products[one].mean() + products[other].mean() - 2 * between
    size = len(first) * len(second) / (len(first) + len(second))
    return float(size * apart / np.diag(products).mean())


def _pruned(bundle: Bundle) -> set[int]:
    """Return the identities of the parameters whose zeros must stay."""
    return {id(bundle.model.get_parameter(name)) for name in bundle.sparse}


@torch.no_grad()
def tie(members: Sequence[tuple[nn.Module, ...]], pruned: set[int]) -> None:
    """Let the members, each of as many linear modules, share the mean of their weights, in place.

    Where one of them has a pruned weight, the shared one is zero.
    """
    for same in zip(*members, strict=True):
        weights = [_weight(module) for module in same]
        mean = torch.zeros_like(weights[0])
        for weight in weights:
            mean += weight / len(weights)
        for weight in weights:
            if id(weight) in pruned:
                mean[weight == 0] = 0
        weights[0].copy_(mean)
        for module in same[1:]:
            module.weight = weights[0]


def _weight(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight
