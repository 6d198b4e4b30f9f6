"""Which weights become zero: those of the lowest scores, exact to one weight, and N:M patterns.

A score is what a technique holds a weight to be worth: its magnitude, or how much the loss
depends on it (`tasks/saliency.py`). Of N weights in all, the round(s·N) of the lowest scores go,
weights that are zero already before all others, and among equal scores the first ones.

An N:M pattern keeps N of every M neighbours along the inputs of a matrix (2:4: Mishra et al. 2021,
"Accelerating Sparse Deep Neural Networks", section 3): the M − N of the lowest scores go. Where
fewer weights are to go than the pattern takes, they are the lowest among those that it takes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.errors import TechniqueError
from tasks.model_parts import is_linear

Scope = Literal["global", "layer"]
Score = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, weight) → a new float32 tensor of the weight's shape: what each is worth, at least 0."""
_BLOCK = 2**20
"""Ranks counted at a time, so that counting takes little memory."""
_KEPT = torch.iinfo(torch.int32).max
"""The rank of a weight that a pattern keeps: above that of any score."""


@dataclass(frozen=True)
class Pattern:
    """Of every `group` neighbours, `keep` stay."""

    keep: int
    group: int

    @classmethod
    def of(cls, text: str) -> "Pattern":
        """Return the pattern that `2:4` means; raises ValueError where it means none."""
        keep, _, group = text.partition(":")
        if not (keep.isdecimal() and group.isdecimal() and 0 < int(keep) < int(group)):
            raise ValueError(
                f"a pattern keeps N of every M weights and is written N:M with 0 < N < M, as in "
                f"2:4; not {text}"
            )
        return cls(int(keep), int(group))

    @property
    def sparsity(self) -> float:
        """The share of weights that it takes."""
        return (self.group - self.keep) / self.group


def prunable(model: nn.Module, *, embeddings: bool, head: bool) -> tuple[str, ...]:
    """Return the names of the matrices to prune: those of layers, and the others as asked.

    A matrix that several layers share is named once. Raises TechniqueError where there are none.
    """
    names = []
    distinct = {name for name, _ in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM):
            names += [f"{name}.{n}" for n, p in module.named_parameters() if p.dim() == 2]
            continue
        if isinstance(module, nn.Embedding):
            wanted = embeddings
        elif is_linear(module):
            wanted = head or _is_in_layer(name)
        else:
            continue
        if wanted and f"{name}.weight" in distinct:
            names.append(f"{name}.weight")
    if not names:
        raise TechniqueError("the model has no matrices to prune in its layers")
    return tuple(names)


def _is_in_layer(name: str) -> bool:
    """Tell whether a module lies in a numbered layer, as in `encoder.layer.3.output.dense`."""
    return any(part.isdigit() for part in name.split("."))


def starting_sparsity(
    model: nn.Module, names: Sequence[str], target: float, pattern: Pattern | None = None
) -> float:
    """Return the sparsity that pruning to `target` begins with.

    Raises TechniqueError where the target is reached already, or a matrix does not divide into the
    pattern's groups.
    """
    if pattern is not None:
        _check_groups(model, names, pattern)
    zeros, total = _count_zeros(model, names, pattern)
    if zeros >= round(target * total):
        if pattern is not None:
            raise TechniqueError(
                f"the model has the pattern {pattern.keep}:{pattern.group} already: "
                "give a sparser `pattern`, or leave the step out"
            )
        raise TechniqueError(
            f"the model has {zeros / total:.1%} zeros already: `sparsity` must be above that, "
            f"not {target}"
        )
    return zeros / total


def _check_groups(model: nn.Module, names: Sequence[str], pattern: Pattern) -> None:
    for name in names:
        inputs = model.get_parameter(name).shape[_input_axis(model, name)]
        if inputs % pattern.group:
            raise TechniqueError(
                f"`{name}` has {inputs} inputs, which do not divide into groups of "
                f"{pattern.group}: give another `pattern`, or prune to a `sparsity`"
            )


def sparsity(model: nn.Module, names: Sequence[str]) -> float:
    """Return the share of zeros in the parameters `names`."""
    zeros, total = _count_zeros(model, names, None)
    return zeros / total


def _count_zeros(
    model: nn.Module, names: Sequence[str], pattern: Pattern | None
) -> tuple[int, int]:
    """Return the zeros in the parameters `names` and their size.

    Given a pattern, no more zeros of a group count than it takes: they then are as many as it
    takes in all exactly where every group has it.
    """
    zeros = total = 0
    for name in names:
        zero = model.get_parameter(name) == 0
        total += zero.numel()
        if pattern is None:
            zeros += int(zero.sum())
        else:
            found = _grouped(zero, pattern, _input_axis(model, name)).sum(-1)
            zeros += int(found.clamp(max=pattern.group - pattern.keep).sum())
    return zeros, total


def rising(start: float, end: float, rounds: int) -> list[float]:
    """Return the sparsity after each round: every round takes the same share of what is left.

    s_r = 1 − (1 − s_0)·((1 − s_R) / (1 − s_0))^(r/R) (Frankle and Carbin 2019, "The Lottery Ticket
    Hypothesis", section 2: p^(1/n) of the weights in each of n rounds). The last is `end` exactly.
    """
    left = (1 - end) / (1 - start)
    return [1 - (1 - start) * left ** (r / rounds) for r in range(1, rounds)] + [end]


def magnitude(_name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return |w|: a weight's score by its magnitude."""
    return weight.abs().float()


@torch.no_grad()
def zero_lowest(
    model: nn.Module,
    names: Sequence[str],
    share: float,
    scope: Scope = "global",
    score: Score = magnitude,
    pattern: Pattern | None = None,
) -> None:
    """Set round(`share` × weights) weights to zero, in place: those of the lowest scores.

    `scope` ranks all matrices together or each by itself; its share is then exact in each. Zeros
    beyond `share` that are there already stay. Scores are held for one matrix at a time.
    """
    for name, chosen in lowest(model, names, share, scope, score, pattern):
        model.get_parameter(name).masked_fill_(chosen, 0)


@torch.no_grad()
def lowest(
    model: nn.Module,
    names: Sequence[str],
    share: float,
    scope: Scope = "global",
    score: Score = magnitude,
    pattern: Pattern | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the matrices' names and where the weights lie that `zero_lowest` would set to zero.

    Where none would go, nothing is yielded.
    """
    for group in [tuple(names)] if scope == "global" else [(name,) for name in names]:
        count = round(share * sum(model.get_parameter(name).numel() for name in group))
        if count > 0:
            yield from _lowest(model, group, count, score, pattern)


def _lowest(
    model: nn.Module, names: Sequence[str], count: int, score: Score, pattern: Pattern | None
) -> Iterator[tuple[str, torch.Tensor]]:
    def ranks() -> Iterator[torch.Tensor]:
        return (_ranks(model, name, score, pattern) for name in names)

    threshold, ties = _threshold(ranks, count)
    for name, rank in zip(names, ranks(), strict=True):
        chosen = rank < threshold
        tied = torch.nonzero(rank.flatten() == threshold).flatten()[:ties]
        chosen.view(-1)[tied] = True
        ties -= len(tied)
        yield name, chosen


def _ranks(model: nn.Module, name: str, score: Score, pattern: Pattern | None) -> torch.Tensor:
    """Return int32 ranks in the order of the scores: 0 for zeros, `_KEPT` for what must stay.

    The bits of floats that are not negative, read as integers, are in the floats' own order.
    """
    weight = model.get_parameter(name).detach()
    rank = score(name, weight).contiguous().view(torch.int32).add_(1).masked_fill_(weight == 0, 0)
    if pattern is not None:
        rank[_kept(rank, pattern, _input_axis(model, name))] = _KEPT
    return rank


def _kept(rank: torch.Tensor, pattern: Pattern, axis: int) -> torch.Tensor:
    """Return where the `keep` highest of each group are; of equal ones the last."""
    order = _grouped(rank, pattern, axis).argsort(dim=-1, stable=True)
    lost = order[..., : pattern.group - pattern.keep]
    kept = torch.ones_like(order, dtype=torch.bool).scatter_(-1, lost, False)
    return kept.flatten(-2).movedim(-1, axis)


def _grouped(values: torch.Tensor, pattern: Pattern, axis: int) -> torch.Tensor:
    """Return `values` with `axis` last and divided: (…, groups, members)."""
    moved = values.movedim(axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, pattern.group)


def _input_axis(model: nn.Module, name: str) -> int:
    """Return the axis of a matrix along which its inputs lie."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return 0 if isinstance(owner, Conv1D) else 1


def _threshold(ranks: Callable[[], Iterator[torch.Tensor]], count: int) -> tuple[int, int]:
    """Return the `count`-th lowest rank, and how many of that rank are among the lowest.

    Counted by the upper half of the bits, then, where the upper half decides nothing, by the
    lower: ranks of all matrices are never held or sorted together.
    """
    high = _histogram(rank >> 16 for rank in ranks())
    upper, below = _place(high, count)
    low = _histogram(rank[rank >> 16 == upper] & 0xFFFF for rank in ranks())
    lower, between = _place(low, count - below)
    return upper << 16 | lower, count - below - between


def _histogram(values: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return int64 counts of the 16-bit `values`."""
    counts = torch.zeros(2**16, dtype=torch.int64)
    for tensor in values:
        for block in torch.split(tensor.flatten(), _BLOCK):
            counts += torch.bincount(block, minlength=2**16).cpu()
    return counts


def _place(counts: torch.Tensor, count: int) -> tuple[int, int]:
    """Return the bin that holds the `count`-th value, and how many values lie in bins before."""
    ends = counts.cumsum(0)
    place = int(torch.searchsorted(ends, count))
    return place, int(ends[place] - counts[place])
