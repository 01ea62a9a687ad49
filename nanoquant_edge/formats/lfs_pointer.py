# SPDX-License-Identifier: Apache-2.0
"""Pointer files of Git LFS: a few lines of text in the place of a large file, where a repository was cloned without it.

Layout: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import NqEdgeError

__all__ = ["check_is_no_pointer", "is_pointer"]

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
#: The specification's limit.
_LARGEST = 1024


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS; False where it cannot be read.

    Example:
        >>> is_pointer(Path("README.md"))
        False
    """
    try:
        if path.stat().st_size >= _LARGEST:
            return False
        with path.open("rb") as file:
            return file.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        return False


def check_is_no_pointer(path: Path, code: str) -> None:
    """Refuse a pointer file by what it is.

    Raises:
        NqEdgeError: `code`.
    """
    if is_pointer(path):
        hint = "Fetch the file itself: git lfs pull, or hf download."
        raise NqEdgeError(code, f"{path} is a pointer of Git LFS, not the file that it stands for.", hint)
