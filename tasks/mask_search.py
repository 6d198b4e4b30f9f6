"""Which heads and neurons to keep under a budget, with no training.

After Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers". With a mask m of
ones and zeros over all parts, and a model that has converged (∂L/∂m ≈ 0 on average),

    L(m) ≈ L(1) + ½·(1 − m)ᵀ·I·(1 − m),    I = Σ_x g_x·g_xᵀ,    g_x = ∂L(x)/∂m at m = 1

where the empirical Fisher information I stands for the Hessian (eq. 4 to 6). First the diagonal
alone, I_ii = Σ_x g_x,i²: the parts of largest I_ii under the budget (eq. 8 and algorithm 1). Then
the block of each layer: parts change places within it, which costs nothing (eq. 9 to 11).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from tasks.model_parts import Layer

_REAL = 1e-9
"""A share of a sum below which a difference is rounding."""


@dataclass(frozen=True)
class PartCost:
    """What the parts of one kind cost in one layer: a plateau, then a straight line.

    So is a measured latency (Kwon et al. 2022, section 4.2); of arithmetic the plateau is one part.
    """

    base: float
    """Of the first `free` parts together."""
    free: int
    each: float
    """Of every further part."""

    def of(self, count: int) -> float:
        """Return the cost of `count` parts, one at least."""
        return self.base + self.each * max(0, count - self.free)


def fitted(measured: Mapping[int, float]) -> PartCost:
    """Return the plateau and line nearest to measured costs (number of parts → cost).

    Least squares for each measured number as the plateau's end; the nearest fit of all. A line that
    would fall is level.
    """
    counts = np.array(sorted(measured))
    costs = np.array([measured[count] for count in counts])
    best, found = np.inf, PartCost(float(costs.mean()), int(counts[-1]), 0.0)
    for free in counts[:-1]:
        design = np.stack([np.ones(len(counts)), np.maximum(0, counts - free)], axis=1)
        base, each = np.linalg.lstsq(design, costs, rcond=None)[0]
        error = float(((design @ [base, each] - costs) ** 2).sum())
        if each > 0 and error < best * (1 - _REAL):
            best, found = error, PartCost(float(base), int(free), float(each))
    return found


@dataclass(frozen=True)
class Kept:
    """The ascending indices of the parts that stay, one list a layer."""

    heads: list[list[int]]
    neurons: list[list[int]]

    def cost(self, heads: PartCost, neurons: PartCost) -> float:
        """Return what these parts cost in all layers."""
        return sum(heads.of(len(k)) for k in self.heads) + sum(
            neurons.of(len(k)) for k in self.neurons
        )

    def cut(self, parts: Sequence[Layer]) -> None:
        """Remove all heads and neurons of the layers but these, in place."""
        for part, heads, neurons in zip(parts, self.heads, self.neurons, strict=True):
            if len(heads) < part.num_heads:
                part.keep_heads(heads)
            if len(neurons) < part.num_neurons:
                part.keep_neurons(neurons)


@dataclass(frozen=True)
class _Ranked:
    """The parts of one kind: what stays in any case, and the rest, the worthiest first."""

    order: list[list[list[int]]]
    """Layer → its groups of parts, best first."""
    forced: list[int]
    """Layer → how many of its groups stay in any case."""
    rest: list[int]
    """The layers of the other groups, the worthiest group first."""
    worth: list[float]
    """Of the first n of `rest` together, from n = 0."""
    cost: list[float]
    """Likewise."""

    def kept(self, count: int) -> list[list[int]]:
        """Return the parts that stay where the first `count` of the rest do."""
        counts = list(self.forced)
        for layer in self.rest[:count]:
            counts[layer] += 1
        return [
            sorted(part for group in groups[:number] for part in group)
            for groups, number in zip(self.order, counts, strict=True)
        ]


def least(
    num_heads: Sequence[int],
    num_neurons: Sequence[int],
    head_cost: PartCost,
    neuron_cost: PartCost,
    multiple: int = 1,
    *,
    every_head: bool = False,
) -> float:
    """Return what is spent in any case, given how many parts each layer has: see `search`."""
    first = _ranked([torch.zeros(n) for n in num_heads], head_cost, 1, every=every_head)
    second = _ranked([torch.zeros(n) for n in num_neurons], neuron_cost, multiple)
    return Kept(first.kept(0), second.kept(0)).cost(head_cost, neuron_cost)


def search(
    heads: Sequence[torch.Tensor],
    neurons: Sequence[torch.Tensor],
    head_cost: PartCost,
    neuron_cost: PartCost,
    budget: float,
    multiple: int = 1,
    *,
    every_head: bool = False,
) -> Kept:
    """Return the parts of largest total score that cost `budget` at most, `least` or more.

    The scores (Fisher diagonals) are one tensor a layer. Every layer keeps its best head and best
    group of `multiple` neurons, and as many more as are free. For each number of heads the best
    ones are taken, and the best groups of neurons that the rest of the budget pays for (algorithm
    1): no other choice is worth more, where all groups are as large. `every_head`: keep them all.
    """
    first = _ranked(heads, head_cost, 1, every=every_head)
    second = _ranked(neurons, neuron_cost, multiple)
    spent = Kept(first.kept(0), second.kept(0)).cost(head_cost, neuron_cost)
    best, choice = -1.0, None
    for num_heads, (worth, cost) in enumerate(zip(first.worth, first.cost, strict=True)):
        left = budget * (1 + _REAL) - spent - cost
        if left < 0:
            break
        num_groups = bisect_right(second.cost, left) - 1
        if worth + second.worth[num_groups] > best:
            best, choice = worth + second.worth[num_groups], (num_heads, num_groups)
    assert choice is not None
    return Kept(first.kept(choice[0]), second.kept(choice[1]))


def _ranked(
    scores: Sequence[torch.Tensor], cost: PartCost, multiple: int, *, every: bool = False
) -> _Ranked:
    orders = [torch.argsort(s, descending=True, stable=True).tolist() for s in scores]
    groups = [[o[i : i + multiple] for i in range(0, len(o), multiple)] for o in orders]
    least = max(1, cost.free // multiple)
    forced = [len(g) if every else min(least, len(g)) for g in groups]
    # a layer's groups fall in worth, so its share of the best is always its first ones
    rest = sorted(
        (-float(scores[layer][members].sum()), layer, len(members))
        for layer, found in enumerate(groups)
        for members in found[forced[layer] :]
    )
    return _Ranked(
        order=groups,
        forced=forced,
        rest=[layer for _, layer, _ in rest],
        worth=list(accumulate((-worth for worth, _, _ in rest), initial=0.0)),
        cost=list(accumulate((cost.each * size for _, _, size in rest), initial=0.0)),
    )


def rearranged(gradients: torch.Tensor, kept: Sequence[int]) -> list[int]:
    """Return as many parts of one layer as `kept`, at no greater loss by the layer's Fisher block.

    `gradients` is (examples, parts), the g_x of this layer's parts. What removing the parts R costs
    is Σ_x (Σ_{i∈R} g_x,i)². Each part removed, the worthiest first, changes places with that one
    kept which lowers the cost most, if any does: one greedy round, as in Kwon et al. 2022, section
    4.3. The block is a square matrix of the layer's parts, for the time of the call.
    """
    block = gradients.double().T @ gradients.double()
    own = block.diagonal()
    stays = torch.zeros(len(own), dtype=torch.bool)
    stays[list(kept)] = True
    with_removed = block @ (~stays).double()  # each part with all that are removed
    loss = with_removed[~stays].sum()
    for part in sorted(torch.nonzero(~stays).flatten().tolist(), key=lambda i: -float(own[i])):
        # back goes `part`, away goes each of the others in turn
        without = loss - 2 * with_removed[part] + own[part]
        swapped = without + 2 * (with_removed - block[part]) + own
        swapped[~stays] = torch.inf
        other = int(swapped.argmin())
        if swapped[other] < loss - _REAL * loss.abs():
            loss = swapped[other]
            with_removed = with_removed - block[part] + block[other]
            stays[part], stays[other] = True, False
    return torch.nonzero(stays).flatten().tolist()
