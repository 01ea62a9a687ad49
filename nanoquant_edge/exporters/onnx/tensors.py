# SPDX-License-Identifier: Apache-2.0
"""Initializers that are read, converted and written a piece at a time.

A checkpoint's tensors are mapped from disk; writing one takes 8 MiB of memory however large it is, and pieces that
are all zero become holes of the file.
"""

from __future__ import annotations

import mmap
from typing import IO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.checkpoint import tiles_shape, to_tiles
from .dtypes import numpy_dtype, onnx_type_of

__all__ = ["StreamedTensor", "TiledTensor"]

_PIECE_BYTES = 8 << 20


class StreamedTensor(ir.LazyTensor):
    """A tensor that converts its source while it is written.

    Args:
        source: any shape, C-contiguous; usually a memory map. It is not copied.
        dtype: type to store; None keeps the source's.
        name: initializer name, used in messages.

    Raises:
        NqEdgeError: NQ-NUMERIC, when it is written or read, if a value is not finite in `dtype`.
    """

    def __init__(self, source: NDArray[np.generic], dtype: ir.DataType | None = None, name: str = "") -> None:
        kind = onnx_type_of(source) if dtype is None else dtype
        super().__init__(self._whole, kind, ir.Shape(source.shape), name=name)
        self._source = source
        self._target = numpy_dtype(kind)

    def _whole(self) -> ir.Tensor:
        return ir.Tensor(self._converted(np.asarray(self._source)), self.dtype, name=self.name)

    def _converted(self, piece: NDArray[np.generic]) -> NDArray[np.generic]:
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(piece.astype(self._target, copy=False))
        if result.dtype.kind != "i" and not np.isfinite(result).all():
            raise NqEdgeError(
                "NQ-NUMERIC",
                f"{self.name} holds a value that is not finite as {self._target.name}.",
                "Check the checkpoint, or export with --dtype float32 or bfloat16.",
            )
        return result

    def tofile(self, file: IO[bytes]) -> None:
        """Write the little-endian bytes at the file's position."""
        flat = self._source.reshape(-1)
        step = max(1, _PIECE_BYTES // max(self._target.itemsize, flat.dtype.itemsize))
        hole = False
        for start in range(0, flat.size, step):
            piece = np.asarray(flat[start : start + step])
            hole = not piece.view(np.uint8).any()
            if hole:
                file.seek(piece.size * self._target.itemsize, 1)
            else:
                file.write(self._converted(piece).view(np.uint8).data)
            _forget_pages(self._source)
        if hole:  # the file must reach its full length
            file.seek(-1, 1)
            file.write(b"\0")


class TiledTensor(ir.LazyTensor):
    """Packed words of layout 0 that are stored as layout 1; reordered when they are read or written, and not kept.

    Args:
        words: int32 (rows, ceil(columns / 32)).
        columns: signs in a row.
        name: initializer name.
    """

    def __init__(self, words: NDArray[np.int32], columns: int, name: str = "") -> None:
        super().__init__(self._whole, ir.DataType.INT32, ir.Shape(tiles_shape(len(words), columns)), name=name)
        self._words, self._columns = words, columns

    def _whole(self) -> ir.Tensor:
        tiles = to_tiles(np.ascontiguousarray(self._words), self._columns)
        _forget_pages(self._words)
        return ir.Tensor(tiles, self.dtype, name=self.name)


def _forget_pages(source: NDArray[np.generic]) -> None:
    """Give mapped pages back at once, so that resident memory does not grow with the checkpoint."""
    mapping = getattr(source, "_mmap", None)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)
