# SPDX-License-Identifier: Apache-2.0
"""A group of compressed layers with one input, as the structure that one call of the library takes."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass

from ...errors import NqEdgeError
from .binding import MAX_GROUP, CLinear, CPass, CType, Input, check
from .device import Device

__all__ = ["Group", "Rows", "Scratch"]

_ALIGN = 8  # elements: outputs lie side by side at multiples of 16 bytes


@dataclass(frozen=True)
class Rows:
    """A matrix of 16-bit numbers on the device.

    Attributes:
        address: of the first row.
        stride: numbers from one row to the next.
    """

    address: int
    stride: int

    def columns(self, first: int) -> Rows:
        """The same rows from column `first` on."""
        return Rows(self.address + 2 * first, self.stride)


@dataclass(frozen=True)
class Scratch:
    """Memory that all passes of one stream share."""

    address: int
    size: int


class Group:
    """One to four layers computed from the same x in one pass.

    Args:
        layers: with one in_features and one scale type between them.
        dtype: of x and y.
        input: what is applied to x first; a gated input has rows of 2 in_features.
        norm_weight: address, float32 [in_features], for `Input.RMS_NORM`.
        norm_eps: its epsilon.

    Attributes:
        offsets: where each layer's columns begin in an output row.
        widths: columns of each layer.
        width: columns of an output row.
    """

    def __init__(
        self,
        layers: Sequence[CLinear],
        dtype: CType,
        *,
        input: Input = Input.PLAIN,
        norm_weight: int | None = None,
        norm_eps: float = 0.0,
    ) -> None:
        assert 1 <= len(layers) <= MAX_GROUP
        self.offsets: list[int] = []
        self.widths = [int(layer.out_features) for layer in layers]
        self.width = 0
        for width in self.widths:
            self.offsets.append(self.width)
            self.width += -(-width // _ALIGN) * _ALIGN
        self._layers = (CLinear * len(layers))(*layers)
        self._pass = CPass(
            layers=self._layers,
            count=len(layers),
            x_type=dtype,
            y_type=dtype,
            input=input,
            norm_eps=norm_eps,
            norm_weight=norm_weight,
        )

    def scratch_bytes(self, device: Device, rows: int) -> int:
        """Scratch memory that suffices for 1 to `rows` rows.

        Raises:
            NqEdgeError: NQ-CUDA when no kernel takes the layers.
        """
        self._pass.rows = rows
        size = int(device.library.nq_cuda_workspace_bound(byref(self._pass)))
        if not size:
            raise NqEdgeError("NQ-CUDA", f"no kernel takes {rows} rows of layers with {self.width} outputs.")
        return size

    def __call__(
        self, device: Device, rows: int, x: Rows, *, y: Rows, scratch: Scratch, residual: Rows | None = None
    ) -> None:
        """Enqueue the pass: y = layers(x) (+ residual, which may be y)."""
        described = self._pass
        described.rows = rows
        described.x, described.x_stride = x.address, x.stride
        for i, offset in enumerate(self.offsets):
            described.y[i], described.y_stride[i] = y.address + 2 * offset, y.stride
            described.residual[i] = None if residual is None else residual.address + 2 * offset
        described.workspace, described.workspace_bytes = scratch.address, scratch.size
        status = device.library.nq_cuda_forward(byref(described), device.stream)
        if status:
            check(status, f"a binary linear layer of {rows} rows")
