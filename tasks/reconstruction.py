"""Least squares without labels: what is left of a layer makes up for what was cut out of it.

From the first layer to the last, attention before feed-forward network, the cut model's stream s
after the layer is brought near the whole model's t, over all tokens of calibration texts:

    min_m Σ_tokens ‖s + A·(m − 1) − t‖² + λ·‖m − 1‖²

where the columns of A are what each kept head or neuron adds to the stream, so that the solution is
m = 1 + (AᵀA + λ·1)⁻¹·Aᵀ(t − s). The cut model before this layer is already mended, the whole model
is as it was (mask tuning: Kwon et al. 2022, section 4.4; they solve it by LSMR with damping). m is
multiplied into the output matrix. Beyond the paper, as settings:

* the matrix itself is solved for, W + (ZᵀZ + λ·1)⁻¹·Zᵀ(t − s) with Z the kept activations: the
  same least squares with a factor for every weight;
* the bias takes up the mean of t − s that is left, which is what columns centred over the tokens
  amount to.

AᵀA needs no A: with Z (tokens, columns) and W (columns, width) it is (ZᵀZ) ∘ (W·Wᵀ), summed over
the columns of each head. λ is a share of the mean of the system's diagonal.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.bundle import Bundle
from tasks.stream import stream
from tasks.training.batches import Batch, Encoded, Examples
from tasks.training.progress import Progress

Method = Literal["scale", "weights"]
_BATCH = 32


@dataclass(frozen=True)
class Place:
    """One output matrix of the cut model, and where the stream is compared after it."""

    output: nn.Module
    """Adds its part to the stream."""
    size: int
    """Columns of one part: the head size, or 1."""
    ours: nn.Module
    """The norm that the cut model's stream goes into after it."""
    theirs: nn.Module
    """The same norm of the whole model."""


def places(cut: PreTrainedModel, whole: PreTrainedModel) -> list[Place]:
    """Return where to mend, first to last. Both models have the same layers."""
    ours, theirs = stream(cut), stream(whole)
    assert len(ours.norms) == len(theirs.norms)
    found = []
    for index, part in enumerate(ours.parts):
        after = 2 * index + 1
        for offset, output, size in (
            (0, part.attention_output, part.head_size),
            (1, part.ffn_output, 1),
        ):
            norms = ours.norms[after + offset], theirs.norms[after + offset]
            found.append(Place(output, size, *norms))
    return found


@dataclass
class System:
    """Σ over tokens of what the least squares need; float64."""

    count: int
    columns: torch.Tensor
    """Σ z (columns,)"""
    missing: torch.Tensor
    """Σ t − s (width,)"""
    square: torch.Tensor
    """Σ z·zᵀ (columns, columns)"""
    cross: torch.Tensor
    """Σ z·(t − s)ᵀ (columns, width)"""

    @classmethod
    def empty(cls, columns: int, width: int) -> "System":
        """Return a system of no tokens."""
        sizes = ((columns,), (width,), (columns, columns), (columns, width))
        return cls(0, *(torch.zeros(size, dtype=torch.float64) for size in sizes))

    def add(self, columns: torch.Tensor, missing: torch.Tensor) -> None:
        """Add tokens: their activations (tokens, columns) and t − s (tokens, width)."""
        z, r = columns.double(), missing.double()
        self.count += len(z)
        self.columns += z.sum(0).cpu()
        self.missing += r.sum(0).cpu()
        self.square += (z.T @ z).cpu()
        self.cross += (z.T @ r).cpu()

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `square` and `cross` with the tokens' means taken off."""
        share = self.columns[:, None] / self.count
        return self.square - share * self.columns, self.cross - share * self.missing


def mend(
    cut: Bundle,
    whole: Bundle,
    examples: Examples,
    *,
    method: Method,
    bias: bool,
    damping: float,
    device: torch.device,
    progress: Progress,
) -> None:
    """Change the output matrices of `cut` in place, so that its stream comes near that of `whole`.

    Weights that are zero stay zero. Both models end on `device`, in evaluation mode.
    """
    for bundle in (cut, whole):
        bundle.model.to(device).eval()
    found = places(cut.model, whole.model)
    encoded = Encoded(examples, cut.tokenizer, cut.max_length)
    progress.start("reconstructing layers", len(found))
    try:
        for place in found:
            system = _collect(cut.model, whole.model, place, encoded, device)
            solve(place.output, place.size, system, method=method, bias=bias, damping=damping)
            progress.advance(1)
    finally:
        progress.stop()


@torch.no_grad()
def _collect(
    cut: PreTrainedModel,
    whole: PreTrainedModel,
    place: Place,
    encoded: Encoded,
    device: torch.device,
) -> System:
    weight = _rows(place.output)
    system = System.empty(*weight.shape)
    for indices in encoded.ordered(_BATCH):
        batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
        real = batch["attention_mask"].bool()
        (target,) = _inputs(whole, batch, place.theirs)
        columns, found = _inputs(cut, batch, place.output, place.ours)
        system.add(columns[real], (target - found)[real])
    return system


class _Reached(Exception):
    """What was asked for is known: the rest of the model need not be computed."""


def _inputs(model: PreTrainedModel, batch: Batch, *modules: nn.Module) -> list[torch.Tensor]:
    """Return what is put into each of `modules` (batch, tokens, …), computed no further."""
    seen: list[torch.Tensor] = []
    with _watched(seen, modules), suppress(_Reached):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert len(seen) == len(modules)
    return seen


@contextmanager
def _watched(seen: list[torch.Tensor], modules: tuple[nn.Module, ...]) -> Iterator[None]:
    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])
        if module is modules[-1]:
            raise _Reached

    hooks = [module.register_forward_pre_hook(see) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(module: nn.Module) -> torch.Tensor:
    """Return the weight as (inputs, outputs), a view."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight.detach() if isinstance(module, Conv1D) else weight.detach().T


@torch.no_grad()
def solve(
    output: nn.Module, size: int, system: System, *, method: Method, bias: bool, damping: float
) -> None:
    """Put the least squares' solution into `output`, whose parts have `size` columns each."""
    square, cross = system.centred() if bias else (system.square, system.cross)
    weight = _rows(output).double().cpu()
    if method == "weights":
        change = _ridge(square, cross, damping) * (weight != 0)
    else:
        num_parts = len(weight) // size
        blocks = (square * (weight @ weight.T)).view(num_parts, size, num_parts, size)
        right = (cross * weight).sum(1).view(num_parts, size).sum(1)
        factors = _ridge(blocks.sum((1, 3)), right[:, None], damping)
        change = weight * factors.repeat_interleave(size, dim=0)
    _rows(output).add_(change.to(_rows(output)))
    if bias:
        assert isinstance(output.bias, nn.Parameter)
        left = (system.missing - system.columns @ change) / system.count
        output.bias.add_(left.to(output.bias))


def _ridge(square: torch.Tensor, right: torch.Tensor, damping: float) -> torch.Tensor:
    """Return (square + λ·1)⁻¹·right, with λ a share `damping` of the diagonal's mean."""
    diagonal = square.diagonal()
    strength = (damping * diagonal.mean()).clamp_min(torch.finfo(square.dtype).tiny)
    system = square + strength * torch.eye(len(square), dtype=square.dtype)
    solution: torch.Tensor = torch.linalg.solve(system, right)
    return solution
