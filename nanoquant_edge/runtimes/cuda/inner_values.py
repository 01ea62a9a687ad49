# SPDX-License-Identifier: Apache-2.0
"""Inner values of a pass brought to the host as they are computed: outputs of layers and blocks, for validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...formats.graph import block_output
from .device import Device
from .number_types import to_float32
from .passes import Rows
from .workspace import Workspace

__all__ = ["InnerValues"]

#: How names of blocks' outputs begin.
_BLOCK = block_output(0).partition("0")[0]


class _Piece(Protocol):
    """Tokens of one sequence in a pass."""

    @property
    def index(self) -> int: ...

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...


class InnerValues:
    """Collects values by name.

    Args:
        names: which ones.
        kind: of activations, "F16" or "BF16".
        shape: sequences and tokens of the call.
        residual_scale: factor of blocks' outputs, which is taken out again.

    Attributes:
        values: name -> float32 [sequences, tokens, width]; zero past a sequence's tokens.
    """

    def __init__(self, names: Iterable[str], kind: str, *, shape: tuple[int, int], residual_scale: float) -> None:
        self.values: dict[str, NDArray[np.float32]] = {}
        self._names, self._kind, self._shape = frozenset(names), kind, shape
        self._scale = np.float32(1 / residual_scale)
        self._rows: dict[str, NDArray[np.float32]] = {}

    def begin(self, device: Device, workspace: Workspace, rows: int) -> None:
        """Before a pass of `rows` rows."""
        self._device, self._workspace, self._count = device, workspace, rows
        self._rows.clear()

    def watch(self, name: str, rows: Rows, width: int) -> None:
        """See `decoder.Watch`: the value is copied to where logits will lie later, and from there to the host."""
        if name not in self._names:
            return
        device, place = self._device, self._workspace.address("logits")
        arguments = (rows.address, 2 * rows.stride, place, 2 * width, 2 * width, self._count)
        device.call("nq_cuda_copy_rows", *arguments, device.stream)
        data = device.download(place, (2 * self._count * width,), np.uint8)
        numbers = to_float32(data, self._kind).reshape(self._count, width)
        self._rows[name] = numbers * self._scale if name.startswith(_BLOCK) else numbers

    def end(self, pieces: Sequence[_Piece]) -> None:
        """After a pass: put the rows where their tokens are."""
        for name, rows in self._rows.items():
            whole = self.values.setdefault(name, np.zeros((*self._shape, rows.shape[1]), np.float32))
            first = 0
            for piece in pieces:
                count = piece.end - piece.begin
                whole[piece.index, piece.begin : piece.end] = rows[first : first + count]
                first += count
