"""Matrices stored in few bits: several weights share a byte, on disk and in memory.

    weight = (code − offset)·scale

with codes of b bits, a scale for each group of neighbouring weights of a row, and one offset for
all, or one for each group. A byte holds 8 / b codes, the first in its lowest bits. The weights are
unpacked each time that they are used: this saves bytes, and no time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.replacements import Replacement, put

WIDTHS = (1, 2, 4, 8)
"""Bits that a code may have: those that divide a byte."""


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return uint8 (rows, bytes) of codes (rows, columns) below 2**bits; the rest is zeros."""
    assert bits in WIDTHS
    each = 8 // bits
    padded = F.pad(codes.to(torch.int32), (0, -codes.shape[1] % each))
    places = torch.arange(each, dtype=torch.int32, device=codes.device) * bits
    groups = padded.view(len(codes), -1, each) << places
    return groups.sum(dim=2).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Return uint8 (…, columns) of bytes (…, bytes): what `pack` was given."""
    each = 8 // bits
    places = torch.arange(each, dtype=torch.int32, device=packed.device) * bits
    codes: torch.Tensor = (packed.to(torch.int32)[..., None] >> places) & (2**bits - 1)
    return codes.flatten(-2)[..., :columns].to(torch.uint8)


class Packed(Replacement):
    """A matrix (rows, columns) of packed weights."""

    scale: torch.Tensor
    packed: torch.Tensor
    zero: torch.Tensor | None

    def __init__(
        self, rows: int, columns: int, bits: int, group: int, offset: float | None = None
    ) -> None:
        """`group` weights of a row share a scale; `offset` None: each group has its own."""
        super().__init__()
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group
        self.offset = offset
        self.num_groups = -(-columns // group)
        assert self.num_groups == 1 or group * bits % 8 == 0  # a group ends where a byte does
        num_bytes = -(-self.num_groups * group * bits // 8)
        self.register_buffer("packed", torch.zeros(rows, num_bytes, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(rows, self.num_groups))
        zero = None if offset is not None else torch.zeros_like(self.scale, dtype=torch.uint8)
        self.register_buffer("zero", zero)

    def arguments(self) -> dict[str, Any]:
        """Return the widths."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "bits": self.bits,
            "group": self.group,
            "offset": self.offset,
        }

    @property
    def num_packed(self) -> int:
        """How many weights are packed."""
        return self.rows * self.columns

    def fill(
        self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
    ) -> None:
        """Take codes (rows, columns), and scales and zero points (rows, groups), in place."""
        padded = F.pad(codes, (0, self.num_groups * self.group - self.columns))
        self.packed.copy_(pack(padded, self.bits))
        self.scale.copy_(scale)
        if self.zero is not None:
            assert zero is not None
            self.zero.copy_(zero)

    def rows_at(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weights (…, columns) of the rows at `index` (…), or of all rows."""
        packed, scale, zero = (
            part if part is None or index is None else part[index]
            for part in (self.packed, self.scale, self.zero)
        )
        assert packed is not None
        assert scale is not None
        codes = unpack(packed, self.bits, self.num_groups * self.group).float()
        grouped = codes.view(*codes.shape[:-1], self.num_groups, self.group)
        offset: Any = self.offset if zero is None else zero[..., None].float()
        weights: torch.Tensor = (grouped - offset) * scale[..., None]
        return weights.flatten(-2)[..., : self.columns]


class PackedLinear(Packed):
    """A linear layer of packed weights: its rows are outputs."""

    kind = "packed_linear"

    def __init__(
        self, rows: int, columns: int, bits: int, group: int, offset: float | None = None,
        *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(rows, columns, bits, group, offset)
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None

    def arguments(self) -> dict[str, Any]:
        """Return the widths."""
        return {**super().arguments(), "bias": self.bias is not None}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (…, rows) of values (…, columns)."""
        return F.linear(values, self.rows_at().to(values.dtype), self.bias)


class PackedEmbedding(Packed):
    """An embedding table of packed rows."""

    kind = "packed_embedding"

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (…, columns) for ids (…)."""
        return self.rows_at(ids)


def found(model: nn.Module) -> dict[str, Packed]:
    """Return the packed matrices of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Packed)}


def unpacked(model: nn.Module) -> dict[str, Packed]:
    """Put float layers in the place of packed ones, in place; return those, by name."""
    packed = found(model)
    for name, module in packed.items():
        plain: nn.Linear | nn.Embedding
        if isinstance(module, PackedLinear):
            plain = nn.Linear(module.columns, module.rows, bias=module.bias is not None)
            if module.bias is not None:
                plain.bias = module.bias
        else:
            plain = nn.Embedding(module.rows, module.columns)
        plain.weight = nn.Parameter(module.rows_at(), requires_grad=False)
        put(model, name, plain)
    return packed
