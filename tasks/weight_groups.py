"""Integer weights by groups: neighbouring weights of a row share a scale and a zero point.

    q = clamp(round(w / s) + z, 0, 2ᵇ − 1),    ŵ = s·(q − z)

Asymmetric: s and z from the least and the greatest weight of the group, both widened to hold zero.
Symmetric: z = 2ᵇ⁻¹ and s = max |w| / (2ᵇ⁻¹ − 1). Round to nearest takes each weight by itself. GPTQ
(Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", section 3 and algorithm 1) lets the weights not yet rounded make up for each error:
with the inputs X of a layer and H = 2·X·Xᵀ, column after column,

    δ = (w_i − ŵ_i) / U_ii,    w_j ← w_j − δ·U_ij  for j > i,    U = upper Cholesky factor of H⁻¹

which is the least-squares update of Optimal Brain Surgeon (Hassibi and Stork 1993) for a fixed
order. H is damped by a share of its mean diagonal. A group's scale is found when its first column
is reached, of the weights as they are then. Layers are treated from first to last, each by inputs
that the layers before it, rounded already, give it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks import packing
from tasks.bundle import Bundle
from tasks.calibration import ACTIVATIONS, calibrate
from tasks.model_parts import is_linear
from tasks.observers import observer
from tasks.packed import Packed
from tasks.training.batches import Encoded, Examples
from tasks.training.progress import Progress, Silent

_BLOCK = 128
"""Columns that are treated before the errors reach the columns behind them."""
_BATCH = 32


@dataclass(frozen=True)
class Grid:
    """How a group of weights becomes integers."""

    bits: int
    group: int
    symmetric: bool

    @property
    def offset(self) -> float | None:
        """The zero point that all groups have; None where each has its own."""
        return float(2 ** (self.bits - 1)) if self.symmetric else None

    def fit(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point (rows,) of one group (rows, columns)."""
        highest = 2**self.bits - 1
        if self.symmetric:
            middle = 2 ** (self.bits - 1)
            scale = weight.abs().amax(dim=1) / (middle - 1)
            zero = torch.full_like(scale, middle)
        else:
            lower, upper = weight.amin(dim=1).clamp_max(0), weight.amax(dim=1).clamp_min(0)
            scale = (upper - lower) / highest
            zero = torch.round(-lower / _usable(scale)).clamp(0, highest)
        return _usable(scale).float().to(weight.dtype), zero

    def codes(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Return the integers, in float, of weights that `scale` and `zero` are broadcast to."""
        return (torch.round(weight / scale) + zero).clamp(0, 2**self.bits - 1)

    def bytes(self, count: int, columns: int) -> int:
        """Return what a matrix (count, columns) takes, its scales and zero points with it."""
        groups = -(-columns // self.group)
        return count * (-(-groups * self.group * self.bits // 8) + groups * (5 - self.symmetric))


def _usable(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def nearest(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, ...]:
    """Return codes (rows, columns), scales and zero points (rows, groups) of each weight alone."""
    pieces = []
    for start in range(0, weight.shape[1], grid.group):
        part = weight[:, start : start + grid.group].double()
        scale, zero = grid.fit(part)
        pieces.append((grid.codes(part, scale[:, None], zero[:, None]), scale, zero))
    codes, scales, zeros = zip(*pieces, strict=True)
    return torch.cat(codes, 1), torch.stack(scales, 1), torch.stack(zeros, 1)


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, damping: float
) -> tuple[torch.Tensor, ...]:
    """Return what `nearest` does, with each error made up for by the columns behind it.

    `hessian` (columns, columns) is 2·X·Xᵀ or any multiple of it.
    """
    left = weight.double().clone()
    upper = _factor(hessian.double(), damping)
    columns = left.shape[1]
    codes, scales, zeros = torch.zeros_like(left), [], []
    scale = zero = torch.zeros(len(left))
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.zeros(len(left), end - start, dtype=left.dtype)
        for i in range(start, end):
            if i % grid.group == 0:
                # no group lies across the end of a block: both are powers of two
                scale, zero = grid.fit(left[:, i : i + grid.group])
                scales.append(scale)
                zeros.append(zero)
            codes[:, i] = grid.codes(left[:, i], scale, zero)
            error = (left[:, i] - (codes[:, i] - zero) * scale) / upper[i, i]
            left[:, i + 1 : end] -= error[:, None] * upper[i, i + 1 : end]
            errors[:, i - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return codes, torch.stack(scales, 1), torch.stack(zeros, 1)


def _factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Hessian."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def compress(
    bundle: Bundle,
    grids: Mapping[str, Grid],
    examples: Examples | None,
    damping: float,
    progress: Progress,
) -> None:
    """Pack the modules named in `grids`, in place: by GPTQ on `examples`, to nearest without them.

    Tables are rounded to nearest in any case. Raises TechniqueError where an input is not finite.
    """
    units = _units(bundle, list(grids), examples)
    parts: dict[str, Packed] = {}
    progress.start("packing layers", len(units))
    try:
        for unit in units:
            modules = {name: bundle.model.get_submodule(name) for name in unit}
            gram = None
            if examples is not None and all(map(is_linear, modules.values())):
                gram = _gram(bundle, modules[unit[0]], examples)
            for name, module in modules.items():
                parts[name] = _packed(module, grids[name], gram, damping)
                # later layers are given what this one will give
                with torch.no_grad():
                    packing.rows(module).copy_(parts[name].rows_at())
            progress.advance(1)
    finally:
        progress.stop()
    packing.install(bundle, parts)


def _packed(module: nn.Module, grid: Grid, gram: torch.Tensor | None, damping: float) -> Packed:
    weight = packing.rows(module).cpu()
    codes, scale, zero = (
        nearest(weight, grid) if gram is None else gptq(weight, gram, grid, damping)
    )
    made = packing.fresh(module, grid.bits, grid.group, grid.offset)
    made.fill(codes.to(torch.uint8), scale.float(), zero)
    return made


def _units(bundle: Bundle, names: Sequence[str], examples: Examples | None) -> list[list[str]]:
    """Return the modules in the order they are used, those together that share an input."""
    linear = [n for n in names if is_linear(bundle.model.get_submodule(n))]
    tables = [[n] for n in names if n not in linear]
    if examples is None:
        return [*tables, *([n] for n in linear)]
    few = examples.take(np.arange(min(_BATCH, len(examples))))
    seen = calibrate(bundle, few, lambda: observer("minmax", ACTIVATIONS, 100), Silent())
    units = [[n for n in members if n in linear] for members in seen.units.values()]
    unused = [[n] for n in linear if n not in seen.ranges]
    return [*tables, *(unit for unit in units if unit), *unused]


def _gram(bundle: Bundle, module: nn.Module, examples: Examples) -> torch.Tensor:
    """Return 2·X·Xᵀ (columns, columns), in float64, of what `module` is given for `examples`.

    Padding is left out.
    """
    columns = packing.rows(module).shape[1]
    total = torch.zeros(columns, columns, dtype=torch.float64)
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    device = next(bundle.model.parameters()).device
    mask = torch.empty(0)

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0]
        if values.dim() == 3 and values.shape[:2] == mask.shape:
            values = values[mask]
        rows = values.reshape(-1, columns).double().cpu()
        total.addmm_(rows.t(), rows, alpha=2)

    handle = module.register_forward_pre_hook(hook)
    try:
        with torch.inference_mode():
            for indices in encoded.ordered(_BATCH):
                batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
                mask = batch["attention_mask"].bool()
                bundle.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        handle.remove()
    return total
