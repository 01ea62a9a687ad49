# SPDX-License-Identifier: Apache-2.0
"""Kept beginnings of texts in a file, so that a system prompt is not computed again after a restart.

A safetensors file: for each beginning its token ids and what `Slots.save` gives. The header names the model by
`Slots.form`, which holds the hashes of its weights, and a hash of everything in the file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..errors import NqEdgeError
from ..formats.safetensors_file import TensorFile
from ..system.files import usual_mode

__all__ = ["Prefix", "read_prefixes", "write_prefixes"]

_VERSION = "1"
#: More than any scheduler has slots.
_MOST_PREFIXES = 256


@dataclass(frozen=True)
class Prefix:
    """The beginning of a text.

    Attributes:
        ids: its tokens.
        arrays: their keys and values, as `Slots.save` gives them.
    """

    ids: list[int]
    arrays: dict[str, np.ndarray]


def write_prefixes(path: Path, form: str, prefixes: Sequence[Prefix]) -> None:
    """Write a file: the old one or the new one, never half.

    Args:
        path: where to.
        form: of the slots.
        prefixes: one or more.

    Raises:
        NqEdgeError: NQ-OUTPUT when it cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for number, prefix in enumerate(prefixes):
        tensors[f"{number}.ids"] = np.array(prefix.ids, dtype=np.int32)
        tensors |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in prefix.arrays.items()}
    metadata = {"nq_prefixes": _VERSION, "form": form, "sha256": _digest(tensors)}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata)
            usual_mode(Path(temporary))
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise NqEdgeError("NQ-OUTPUT", f"cannot write {path} ({error}).", "Free some space.") from error


def read_prefixes(path: Path, form: str, *, most_bytes: int) -> list[Prefix]:
    """Read a file that `write_prefixes` wrote.

    Args:
        path: the file.
        form: of the slots that it is read for.
        most_bytes: larger files are refused before anything is read.

    Raises:
        NqEdgeError: NQ-PREFIX for a file that is missing, damaged, too large, or of another model.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise _bad(path, f"it has {size} bytes, and {most_bytes} at most fit the slots")
        file = TensorFile(path, "NQ-PREFIX")
        with safetensors.safe_open(path, framework="np") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("nq_prefixes") != _VERSION:
            raise _bad(path, f"it has version {metadata.get('nq_prefixes')!r}, this program reads {_VERSION}")
        if metadata.get("form") != form:
            raise _bad(path, "it was written for another model or another form of it")
        tensors = {name: np.array(file.tensor(name)) for name in file.names()}
    except NqEdgeError as error:
        if error.code == "NQ-PREFIX":
            raise
        raise _bad(path, error.message) from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _bad(path, str(error)) from error
    if metadata.get("sha256") != _digest(tensors):
        raise _bad(path, "its content is not what was written")
    return list(_parted(path, tensors))


def _parted(path: Path, tensors: dict[str, np.ndarray]) -> Iterator[Prefix]:
    left = dict(tensors)
    for number in range(_MOST_PREFIXES):
        ids = left.pop(f"{number}.ids", None)
        if ids is None:
            break
        if ids.ndim != 1 or ids.dtype != np.int32:
            raise _bad(path, f"the token ids of beginning {number} are not a row of int32")
        begin = f"{number}."
        arrays = {name.removeprefix(begin): left.pop(name) for name in list(left) if name.startswith(begin)}
        yield Prefix(ids.tolist(), arrays)
    if left:
        raise _bad(path, "it holds more than beginnings of texts")


def _digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and values, by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _bad(path: Path, why: str) -> NqEdgeError:
    return NqEdgeError("NQ-PREFIX", f"{path} is not usable: {why}.", "Delete it; it is written anew.")
