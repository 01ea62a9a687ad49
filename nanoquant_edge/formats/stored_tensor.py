# SPDX-License-Identifier: Apache-2.0
"""Where a tensor's bytes lie in a file, for readers that copy them on without making an array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BYTES", "StoredTensor"]

#: Type in safetensors' spelling -> bytes of a number.
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I8": 1}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, row-major and little-endian.

    Attributes:
        path: the file.
        offset: of the first byte.
        dtype: "F32", "F16", "BF16", "I32" or "I8".
        shape: of the tensor.

    Example:
        >>> StoredTensor(Path("weights"), 0, "F16", (3, 4)).size
        24
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BYTES[self.dtype]
