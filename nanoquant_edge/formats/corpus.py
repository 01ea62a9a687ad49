# SPDX-License-Identifier: Apache-2.0
"""Reading a corpus file the one way that published perplexities assume; calibration and validation both use it."""

from __future__ import annotations

from pathlib import Path

from ..errors import NqEdgeError

__all__ = ["join_rows", "read_corpus"]


def join_rows(text: str) -> str:
    """A corpus file as published perplexities see it (docs/METHOD.md, section 3.2): its rows joined with two newlines.

    A line is a row. In the data set a row keeps its line end and a blank row is empty, so that paragraphs end up
    three newlines apart; joining bare lines gives other token counts.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)


def read_corpus(path: str | Path, code: str, max_bytes: int) -> str:
    """A UTF-8 text, its rows joined by `join_rows`.

    Args:
        path: the file.
        code: error code of every refusal.
        max_bytes: largest file that is read.

    Raises:
        NqEdgeError: `code` when it cannot be read, is too large or is not UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise NqEdgeError(code, f"{path} has {size} bytes; at most {max_bytes} are read.", "Pass an excerpt of it.")
        return join_rows(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NqEdgeError(code, f"cannot read {path}: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise NqEdgeError(code, f"{path} is not UTF-8 text ({error.reason}).", "Convert it to UTF-8.") from error
