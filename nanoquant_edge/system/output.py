# SPDX-License-Identifier: Apache-2.0
"""The path of something that is going to be written, looked at before any work begins."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import NqEdgeError

__all__ = ["output_path", "steady_output"]


def output_path(path: str | Path) -> Path:
    """The absolute path of an output.

    Raises:
        NqEdgeError: NQ-OUTPUT for a name that no file system takes, a link that leads nowhere, or a path that cannot
            be looked at.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise NqEdgeError("NQ-OUTPUT", f"{text[:200]!r} holds a zero byte, which no file name does.")
    try:
        found = Path(path).absolute()
        if found.is_symlink() and not found.exists():
            raise NqEdgeError("NQ-OUTPUT", f"{found} is a link that leads nowhere.", "Remove it, or name its target.")
        found.stat()
    except (FileNotFoundError, NotADirectoryError):  # whoever makes it says what stands in the way
        pass
    except OSError as error:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise NqEdgeError(
            "NQ-OUTPUT", f"cannot write {shown}: {error.strerror}.", "Choose another --output."
        ) from error
    return found


def steady_output(path: Path) -> Path:
    """The same path, made absolute where it names the working folder or one above it.

    Such a folder is renamed away when the finished one takes its place, and `.` would then mean what was renamed.
    """
    try:
        here = Path.cwd()
        found = path.resolve()
    except (OSError, RuntimeError, ValueError):  # refused by `output_path`, with a reason
        return path
    return found if found == here or found in here.parents else path
