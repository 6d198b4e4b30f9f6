"""The textbook map between real values and integers, which every quantization is tested against.

    q = clamp(round(x / scale) + zero_point, low, high),    x ≈ scale · (q − zero_point)

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", eq. 1; ONNX's QuantizeLinear and DequantizeLinear.) The scale is
the step between two neighbouring values. Some texts write round(x × scale + bias): their scale is
1 / step, their bias the zero point, and where it is no integer itself zero has no integer of its
own; what is meant is the map above. Halves round to even, as ONNX and IEEE 754 do.

A range [lower, upper], widened to hold zero (padding and pruned weights must stay exactly zero),
gives the map:

    asymmetric: scale = (upper − lower) / (high − low),  zero_point = round(low − lower / scale)
    symmetric:  scale = 2·max(−lower, upper) / (high − low),  zero_point = (low + high) / 2

Inside the range the error is half a step at most. A matrix has one map, or one for each channel.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["int8", "uint8"]


@dataclass(frozen=True)
class Grid:
    """The integers that values are rounded to: `low` to `high`."""

    low: int
    high: int
    symmetric: bool
    """The range is the same on both sides of zero."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that holds them: of 8 bits, signed where there are negative ones."""
        return torch.int8 if self.low < 0 else torch.uint8


def grid(kind: Kind, *, symmetric: bool, reduce_range: bool = False) -> Grid:
    """Return the integers of 8 bits, or of 7 where `reduce_range`, as ONNX Runtime chooses them.

    Symmetric ones leave the lowest out: as many lie on either side of the zero point, so that
    values once rounded give the same map again. Reduced ranges spare the 16-bit sums of processors
    that add two products of 8 bits (AVX2, and AVX-512 without VNNI) from overflowing.
    """
    if kind == "uint8":
        return Grid(1 if symmetric else 0, 127 if reduce_range else 255, symmetric)
    if reduce_range:
        return Grid(-64, 64, symmetric)
    return Grid(-127 if symmetric else -128, 127, symmetric)


@dataclass(frozen=True)
class Affine:
    """A map for a whole tensor, or for each channel along `axis`."""

    scale: torch.Tensor
    """float32, () or (channels,), above zero."""
    zero_point: torch.Tensor
    """int32, of the same shape."""
    grid: Grid
    axis: int | None = None

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """Return the integers, of the grid's type and the shape of `values`."""
        return self._integers(values).to(self.grid.dtype)

    def dequantize(self, integers: torch.Tensor) -> torch.Tensor:
        """Return the values (float32) that the integers stand for."""
        scale, zero_point = self._shaped(integers)
        return (integers.float() - zero_point) * scale

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values (float32) nearest to `values` that have an integer."""
        return self.dequantize(self._integers(values))

    def _integers(self, values: torch.Tensor) -> torch.Tensor:
        """Return the integers as float32, which holds them exactly."""
        scale, zero_point = self._shaped(values)
        found = torch.round(values.float() / scale) + zero_point
        return found.clamp(self.grid.low, self.grid.high)

    def _shaped(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.axis is None:
            return self.scale.to(values.device), self.zero_point.to(values.device).float()
        shape = [1] * values.dim()
        shape[self.axis] = -1
        scale, zero_point = self.scale.view(shape), self.zero_point.view(shape)
        return scale.to(values.device), zero_point.to(values.device).float()


def from_range(
    lower: torch.Tensor | float, upper: torch.Tensor | float, grid: Grid, axis: int | None = None
) -> Affine:
    """Return the map of a range, or of one range a channel along `axis`.

    A range that holds nothing but zero gets the step 1.
    """
    # in float64: the quotient of two float32 lands on a half, and so on either side, too often
    below = torch.as_tensor(lower, dtype=torch.float64).clamp(max=0)
    above = torch.as_tensor(upper, dtype=torch.float64).clamp(min=0)
    if grid.symmetric:
        above = torch.maximum(-below, above)
        below = -above
    scale = ((above - below) / (grid.high - grid.low)).float()
    usable = scale >= torch.finfo(torch.float32).tiny
    scale = torch.where(usable, scale, torch.ones_like(scale))
    if grid.symmetric:
        zero_point = torch.full_like(scale, (grid.low + grid.high) // 2)
    else:
        zero_point = torch.where(usable, torch.round(grid.low - below / scale.double()), 0)
    zero_point = zero_point.clamp(grid.low, grid.high).to(torch.int32)
    return Affine(scale, zero_point, grid, axis)


def of_scale(scale: torch.Tensor, grid: Grid, axis: int) -> Affine:
    """Return the symmetric map of a `scale` that is given, () or one a channel along `axis`."""
    middle = torch.full_like(scale, (grid.low + grid.high) // 2, dtype=torch.int32)
    return Affine(scale, middle, grid, axis if scale.dim() else None)


def of(values: torch.Tensor, grid: Grid, axis: int | None = None) -> Affine:
    """Return the map of the least and the greatest of `values`, or of each channel along `axis`."""
    values = values.detach()
    if axis is None:
        return from_range(values.min(), values.max(), grid)
    others = [i for i in range(values.dim()) if i != axis % values.dim()]
    return from_range(values.amin(others), values.amax(others), grid, axis)
