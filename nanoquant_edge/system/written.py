# SPDX-License-Identifier: Apache-2.0
"""Which folders this program wrote, so that --overwrite replaces nothing else.

A finished folder holds the file `.nq_written`: the names of all its files, and a hash of that list. A folder without
it, or one that holds anything beside those files, is somebody's work and stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError

__all__ = ["MARKER", "foreign_content", "mark_written", "seal_is_right", "sealed"]

MARKER = ".nq_written"
_WRITER = "nanoquant-edge"
#: What this program and the scripts of a deployment add to a finished folder.
_ADDED_LATER = {
    ".nq_checkpoint",
    ".nq_verified",
    ".venv",
    ".venv.new",
    ".venv.old",
    "engine",
    "local",
    "reference.safetensors",
}
#: Larger than the marker of any folder: a deployment has some hundred files.
_LARGEST_MARKER = 16 << 20


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a hash of everything else in it, as entry `sha256`."""
    return {**content, "sha256": _digest(content)}


def seal_is_right(found: dict[str, Any]) -> bool:
    """Whether a JSON object holds the hash that `sealed` gave it."""
    return found.get("sha256") == _digest({name: value for name, value in found.items() if name != "sha256"})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mark_written(folder: Path) -> None:
    """Write the marker of a folder whose files are all there."""
    names = sorted(name for name in _names(folder) if name != MARKER)
    content = sealed({"written_by": _WRITER, "files": names})
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def foreign_content(folder: Path) -> str:
    """Why a folder, or a part of it, is not what this program wrote; empty where all of it is, or there is nothing."""
    if not folder.is_dir():
        return "is no folder"
    if not any(folder.iterdir()):
        return ""
    written = _written(folder)
    if written is None:
        return "was not written by nq-edge"
    other = next((name for name in _names(folder) if name not in written), None)
    return "" if other is None else f"holds {other}, which was not written by nq-edge"


def _written(folder: Path) -> set[str] | None:
    """The names that a folder's marker lists, and the marker; None without a marker that is right."""
    path = folder / MARKER
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_MARKER:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NqEdgeError("NQ-OUTPUT", f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError):
        return None
    if not (isinstance(found, dict) and found.get("written_by") == _WRITER and seal_is_right(found)):
        return None
    names = found.get("files")
    return {MARKER, *map(str, names)} if isinstance(names, list) else None


def _names(folder: Path) -> Iterator[str]:
    """Every file and link below a folder, as its name in the folder, without what is added later."""
    for parent, folders, files in os.walk(folder):
        above = Path(parent).relative_to(folder)
        if above == Path():
            folders[:] = [name for name in folders if name not in _ADDED_LATER]
            files = [name for name in files if name not in _ADDED_LATER]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            yield (above / name).as_posix()
