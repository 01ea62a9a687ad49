# SPDX-License-Identifier: Apache-2.0
"""Reading safetensors as numpy arrays, bfloat16 included, without loading more than is asked for.

The safetensors library checks the file (header length, offsets, overlaps, truncation). Its numpy reader refuses
bfloat16, so the data itself is mapped from the offsets that the checked header states.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from ..errors import NqEdgeError
from .lfs_pointer import check_is_no_pointer
from .stored_tensor import BYTES, StoredTensor

__all__ = ["TensorFile"]

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _numpy_dtype(name: str, path: Path) -> np.dtype:
    if name == "BF16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise NqEdgeError(
                "NQ-MISSING", f"{path} holds bfloat16 tensors.", "Run `pip install ml_dtypes`."
            ) from error
        return np.dtype(ml_dtypes.bfloat16)
    if name not in _DTYPES:
        raise NqEdgeError("NQ-CKPT", f"{path} holds a tensor of type {name}, which no NanoQuant file has.")
    return np.dtype(_DTYPES[name])


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal names, the library could have checked the one and we would read the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in the header")
    return found


class TensorFile:
    """A safetensors file whose tensors are memory-mapped when asked for.

    Args:
        path: the file.
        code: error code of a damaged file.

    Raises:
        NqEdgeError: `code` when the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path, code: str = "NQ-CKPT") -> None:
        check_is_no_pointer(path, code)
        try:
            with safetensors.safe_open(path, framework="np") as checked:
                names = list(checked.keys())
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise NqEdgeError(code, f"{path} is not a readable safetensors file ({error}).") from error
        self.path = path
        self._base = 8 + length
        self._entries = {name: header[name] for name in names}

    def names(self) -> list[str]:
        """Tensor names."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> str:
        """Type of one tensor in safetensors' spelling (`F16`, `BF16`, `I32`, ...)."""
        return str(self._entries[name]["dtype"])

    def stored(self, name: str) -> StoredTensor:
        """Where one tensor lies.

        Raises:
            NqEdgeError: NQ-CKPT for a type that no NanoQuant file has and for an empty tensor.
        """
        entry = self._entries[name]
        if entry["dtype"] not in BYTES or 0 in entry["shape"]:
            raise NqEdgeError("NQ-CKPT", f"{self.path}: {name} is empty or of type {entry['dtype']}.")
        return StoredTensor(self.path, self._base + entry["data_offsets"][0], entry["dtype"], self.shape(name))

    def tensor(self, name: str) -> NDArray[np.generic]:
        """One tensor, a read-only view of the file.

        Raises:
            NqEdgeError: NQ-CKPT for a type that no NanoQuant file has and for an empty tensor; NQ-MISSING for
                bfloat16 without ml_dtypes.
        """
        entry = self._entries[name]
        dtype = _numpy_dtype(entry["dtype"], self.path)
        shape = tuple(entry["shape"])
        if 0 in shape:
            raise NqEdgeError("NQ-CKPT", f"{self.path} holds an empty tensor, {name}.")
        start = self._base + entry["data_offsets"][0]
        if start % dtype.itemsize:  # writers other than ours may not align
            count = int(np.prod(shape))
            return np.fromfile(self.path, dtype, count, offset=start).reshape(shape)
        return np.memmap(self.path, dtype, "r", start, shape)
