# SPDX-License-Identifier: Apache-2.0
"""Text to token windows, with the bundle's own tokenizer and without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError

__all__ = ["cut_windows", "join_rows", "read_text"]

_MAX_BYTES = 256 << 20


def join_rows(text: str) -> str:
    """A corpus file as published perplexities see it (method section 10): its rows joined with two newlines.

    A line is a row. In the data set a row keeps its line end and a blank row is empty, so that paragraphs end up
    three newlines apart; joining bare lines gives other token counts.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)


def read_text(path: str | Path) -> str:
    """A UTF-8 text, its rows joined by `join_rows`.

    Raises:
        NqEdgeError: NQ-TEXT when it cannot be read, is too large or is not UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise NqEdgeError("NQ-TEXT", f"{path} has {size} bytes; at most {_MAX_BYTES} are read.")
        return join_rows(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NqEdgeError("NQ-TEXT", f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise NqEdgeError("NQ-TEXT", f"{path} is not UTF-8 text ({error.reason}).") from error


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
