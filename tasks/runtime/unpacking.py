"""The operators that unpack weights of few bits in a graph (`tasks/packed.py`).

A linear layer of 4 or 8 bits becomes MatMulNBits, which keeps the bytes in memory as they are. All
else is unpacked by operators of the standard: each byte looks its codes up in a table of 256 rows.
Of a linear layer ONNX Runtime does that once, when it loads the model, so that it is as fast and
takes as much memory as in float; of a table it does it for the rows that a text needs.
"""

from typing import Any

import numpy as np
import torch
from onnx import helper

from tasks.packed import Packed, pack, unpack

_EVERY_BYTE = torch.arange(256, dtype=torch.uint8)[:, None]
_BLOCK = 16
"""The least number of weights that MatMulNBits lets share a scale, in powers of two."""


class Unpacking:
    """Nodes and constants that stand in place of one packed matrix."""

    def __init__(self, name: str, part: Packed) -> None:
        self.name, self.part = name, part
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Any] = []

    def multiplies_bits(self) -> bool:
        """Tell whether MatMulNBits can multiply by the matrix."""
        group, bits, offset = self.part.group, self.part.bits, self.part.offset
        middle = offset is None or offset == 2 ** (bits - 1)  # what it takes for zero by itself
        return bits in (4, 8) and middle and group >= _BLOCK and group & (group - 1) == 0

    def product(self, values: str, output: str, node: str) -> None:
        """Multiply `values` (…, columns) by the matrix, to `output` (…, rows)."""
        part = self.part
        if not self.multiplies_bits():
            matrix = self._node("Transpose", [self._rows(None)], perm=[1, 0])
            self.nodes.append(helper.make_node("MatMul", [values, matrix], [output], node))
            return
        blocks = part.packed.numpy().reshape(part.rows, part.num_groups, -1)
        inputs = [
            values,
            self._constant("packed", blocks),
            self._constant("scale", part.scale.numpy()),
        ]
        if part.zero is not None:
            inputs.append(self._constant("zero", self._zeros()))
        self.nodes.append(
            helper.make_node(
                "MatMulNBits", inputs, [output], node, domain="com.microsoft",
                K=part.columns, N=part.rows, bits=part.bits, block_size=part.group,
            )
        )  # fmt: skip

    def look_up(self, ids: str, output: str) -> None:
        """Give the rows at `ids` (batch, tokens) as `output` (batch, tokens, columns)."""
        self._rows(ids, output)

    def _zeros(self) -> np.ndarray:
        """Return the zero points as MatMulNBits has them: packed as the weights are."""
        assert self.part.zero is not None
        return pack(self.part.zero, self.part.bits).numpy()

    def _rows(self, ids: str | None, output: str | None = None) -> str:
        """Unpack the rows at `ids`, or all; return the name of the weights."""
        part = self.part
        lead = [part.rows] if ids is None else [0, 0]
        packed = self._at(self._constant("packed", part.packed.numpy()), ids)
        codes = self._node("Gather", [self._table(), self._node("Cast", [packed], to=6)])
        whole = part.packed.shape[1] * 8 // part.bits  # with what fills up the last byte
        grouped = self._reshape(codes, [*lead, part.num_groups, whole // part.num_groups])
        if part.zero is not None:
            zero = part.zero.numpy().astype(np.float32)[..., None]
            grouped = self._node("Sub", [grouped, self._at(self._constant("zero", zero), ids)])
        scale = self._at(self._constant("scale", part.scale.numpy()[..., None]), ids)
        last = output if output is not None and whole == part.columns else None
        weights = self._reshape(self._node("Mul", [grouped, scale]), [*lead, whole], last)
        if whole == part.columns:
            return weights
        ends = [np.array([value], dtype=np.int64) for value in (0, part.columns, -1)]
        limits = [self._constant(f"cut{i}", end) for i, end in enumerate(ends)]
        return self._node("Slice", [weights, *limits], output)

    def _table(self) -> str:
        """Return the name of the codes of every byte, less the offset."""
        part = self.part
        every = unpack(_EVERY_BYTE, part.bits, 8 // part.bits).numpy().astype(np.float32)
        name = f"codes_{part.bits}_{part.offset or 0:g}"
        self.constants[name] = every - np.float32(part.offset or 0)
        return name

    def _at(self, name: str, ids: str | None) -> str:
        return name if ids is None else self._node("Gather", [name, ids])

    def _reshape(self, values: str, shape: list[int], output: str | None = None) -> str:
        name = "x".join(map(str, shape))
        wanted = self._constant(f"shape_{name}", np.array(shape, dtype=np.int64))
        return self._node("Reshape", [values, wanted], output)

    def _constant(self, leaf: str, value: np.ndarray) -> str:
        self.constants[f"{self.name}_{leaf}"] = value
        return f"{self.name}_{leaf}"

    def _node(self, kind: str, inputs: list[str], output: str | None = None, **how: Any) -> str:
        name = output or f"{self.name}_{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **how))
        return name
