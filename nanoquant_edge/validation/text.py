# SPDX-License-Identifier: Apache-2.0
"""Text to token windows, with the bundle's own tokenizer and without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.corpus import join_rows, read_corpus

__all__ = ["cut_windows", "join_rows", "read_text"]

_MAX_BYTES = 256 << 20


def read_text(path: str | Path) -> str:
    """A UTF-8 text, its rows joined by `join_rows`.

    Raises:
        NqEdgeError: NQ-TEXT when it cannot be read, is too large or is not UTF-8.
    """
    return read_corpus(path, "NQ-TEXT", _MAX_BYTES)


def cut_windows(ids: NDArray[np.int64], count: int, length: int) -> NDArray[np.int64]:
    """The first `count` windows of `length` tokens, side by side: int64 (count, length).

    Raises:
        NqEdgeError: NQ-TEXT when there are fewer tokens.
    """
    if len(ids) < count * length:
        raise NqEdgeError(
            "NQ-TEXT",
            f"the text has {len(ids)} tokens; {count} windows of {length} need {count * length}.",
            "Pass a longer text, or fewer or shorter windows.",
        )
    return np.asarray(ids[: count * length], np.int64).reshape(count, length)
