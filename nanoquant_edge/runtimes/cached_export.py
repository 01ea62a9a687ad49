# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on a machine that computes on its processor: exported once, into a folder beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..errors import NqEdgeError
from ..formats.bundle import MANIFEST_FILE, Bundle
from ..formats.checkpoint import Checkpoint
from ..system.extras import install_command
from ..system.files import read_json, write_json

__all__ = ["cached_bundle", "cached_folder"]

#: Inside the bundle: what it was made from. Hidden, so that no manifest lists it.
_MARK = ".nq_checkpoint"  # system.written knows it


def cached_folder(checkpoint: Path) -> Path:
    """Where the bundle of a checkpoint lies.

    Example:
        >>> cached_folder(Path("models/one")).as_posix()
        'models/one.cpu-bundle'
    """
    whole = checkpoint.resolve() if checkpoint.name in ("", "..") else checkpoint
    return whole.with_name(f"{whole.name}.cpu-bundle")


def cached_bundle(checkpoint: Checkpoint, tell: Callable[[str], None] | None = None) -> Bundle:
    """The float32 bundle of a checkpoint, made now unless it stands beside it already.

    Args:
        checkpoint: an opened checkpoint.
        tell: gets one line when it is made, which takes some seconds.

    Raises:
        NqEdgeError: NQ-MISSING without the packages that export, NQ-OUTPUT where the folder cannot be written or holds
            something else, and whatever exporting raises.
    """
    folder, state = cached_folder(checkpoint.folder), _state(checkpoint)
    if (folder / MANIFEST_FILE).is_file() and _mark(folder) == state:
        return Bundle.open(folder)
    if folder.exists() and _mark(folder) is None:
        raise NqEdgeError(
            "NQ-OUTPUT",
            f"{folder} is in the way: the checkpoint is to be exported there, to run on this processor.",
            "Move it, or export by hand: nq-edge export CHECKPOINT --output BUNDLE.",
        )
    try:
        from ..exporters.onnx.export import export_onnx
    except ImportError as error:
        raise NqEdgeError(
            "NQ-MISSING",
            f"a checkpoint runs on a processor as a bundle, and nothing here can export it ({error}).",
            f"Run {install_command('export')}, or export it elsewhere.",
        ) from error
    if tell is not None:
        tell(f"no GPU is used, so the checkpoint is exported once, into {folder}")
    bundle = export_onnx(checkpoint, folder, overwrite=folder.exists())
    write_json(folder / _MARK, {"state": state})
    return bundle


def _state(checkpoint: Checkpoint) -> str:
    """What tells one state of a checkpoint from another: its configuration, and its files' sizes and times."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for path in sorted(checkpoint.folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _mark(folder: Path) -> str | None:
    try:
        state = read_json(folder / _MARK, "NQ-BUNDLE").get("state")
    except (NqEdgeError, OSError):
        return None
    return state if isinstance(state, str) else None
