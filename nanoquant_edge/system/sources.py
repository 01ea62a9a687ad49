# SPDX-License-Identifier: Apache-2.0
"""The sources of the native libraries, from which a board without a built one builds its own."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["copy_sources", "source_folder"]

_PACKAGE = Path(__file__).resolve().parents[1]
#: Parts of `plugins` that a build needs; the tests are not among them.
_PARTS = ("CMakeLists.txt", "cmake", "kernels", "onnxruntime", "tensorrt")


def source_folder() -> Path | None:
    """`plugins` of the source tree that this package runs from, or of the wheel that it was installed from.

    Returns:
        None where neither is there: files were left out when the package was copied.
    """
    places = (_PACKAGE.parent / "plugins", _PACKAGE / "_sources" / "plugins")
    return next((folder for folder in places if (folder / "CMakeLists.txt").is_file()), None)


def copy_sources(target: Path) -> bool:
    """Copy what libraries are built from.

    Args:
        target: folder to write, which becomes what `cmake -S` takes.

    Returns:
        False where there are no sources.
    """
    folder = source_folder()
    if folder is None:
        return False
    for name in _PARTS:
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    return True
