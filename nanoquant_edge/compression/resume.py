# SPDX-License-Identifier: Apache-2.0
"""What a compression run has done so far, on disk, so that an interrupted run goes on where it was.

A folder beside the output: `run.json` says which run it is, the other files hold tensors (`kept_results`). Each file
appears whole, under its final name, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NqEdgeError
from ..system.files import read_json, write_json

__all__ = ["RunState", "fingerprint"]

_FORMAT = 1
#: Numbers that are summed at one time, in float64.
_SUMMED = 1 << 20
_ADVICE = "Delete it to start anew, or pass --overwrite."


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash that tells models apart: names, shapes and two float64 sums of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in weights:
        sums = [0.0, 0.0]
        for part in parameter.detach().flatten().split(_SUMMED):
            value = part.double()
            sums = [sums[0] + float(value.sum()), sums[1] + float(value.square().sum())]
        digest.update(f"{name} {tuple(parameter.shape)} {sums[0]:.10e} {sums[1]:.10e}\n".encode())
    return digest.hexdigest()


class RunState:
    """The state folder of one run; nothing is written when `folder` is None.

    Args:
        folder: where the state lies.
        identity: JSON that says which run this is; a state of another run is not continued.
        resume: continue what is there; otherwise a state that is there is an error.
        overwrite: what is there, and is not to be resumed, may be deleted.
        writes: whether this process keeps the state, or only reads it.

    Raises:
        NqEdgeError: NQ-RESUME when a state is there and may not be deleted, or belongs to another run.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps({"format": _FORMAT, **(identity or {})}))
        self._begun, self._writes = False, writes
        # What this run writes itself is not read again, whichever process of it asks.
        self._found: frozenset[str] = frozenset()
        if folder is None or not (folder / "run.json").is_file():
            return
        if resume:
            self._must_match(read_json(folder / "run.json", "NQ-RESUME"), self._identity)
            self._begun = True
            self._found = frozenset(path.name for path in folder.iterdir() if path.is_file())
        elif not overwrite:
            hint = "Continue it with --resume, or delete the folder."
            raise NqEdgeError("NQ-RESUME", f"{self.describe()}.", hint)

    def _begin(self, folder: Path) -> None:
        """Make the folder for the first file; a run that fails before it has anything to keep leaves nothing."""
        if self._begun:
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(folder / "run.json", self._identity)
        self._begun = True

    def _must_match(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for key in sorted(set(found) | set(wanted)):
            old, new = found.get(key), wanted.get(key)
            if isinstance(old, dict) and isinstance(new, dict):
                self._must_match(old, new)
            elif old != new:
                raise NqEdgeError(
                    "NQ-RESUME", f"{self.folder} belongs to another run: {key} was {old!r}, now it is {new!r}.", _ADVICE
                )

    def describe(self) -> str:
        """What the state holds and how large it is, in words."""
        if self.folder is None:
            return "no state"
        files = [path for path in self.folder.glob("*") if path.is_file()]
        blocks = sum(path.name.startswith("block-") for path in files)
        size = sum(path.stat().st_size for path in files) / 1e6
        return f"{self.folder} holds an interrupted run: {blocks} finished blocks, {size:.1f} MB"

    def finish(self) -> None:
        """Delete the state; the checkpoint stands."""
        if self.folder is not None and self._begun:
            shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether the interrupted run left a file of this name."""
        return name in self._found

    def write(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
        """Write a file of tensors and notes under a temporary name, flush it, give it its name.

        Raises:
            NqEdgeError: NQ-OUTPUT when it cannot be written.
        """
        if self.folder is None or not self._writes:
            return
        temporary = self.folder / f".{name}.partial"
        try:
            self._begin(self.folder)
            contents = {key: value.contiguous().cpu() for key, value in tensors.items()}
            save_file(contents, temporary, dict(notes) if notes else None)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {self.folder / name}: {error}.") from error

    def read(
        self, name: str, shapes: Mapping[str, tuple[int, ...]], any_shape: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and notes of a file that the interrupted run left, or None where it left none.

        Args:
            name: of the file.
            shapes: tensor -> shape, checked before it is read.
            any_shape: further tensors, of whatever shape.

        Raises:
            NqEdgeError: NQ-RESUME when the file is damaged, or holds other tensors than these.
        """
        if self.folder is None or not self.has(name):
            return None
        try:
            with safe_open(self.folder / name, framework="pt") as file:
                names = set(file.keys())
                right = names == {*shapes, *any_shape} and all(
                    tuple(file.get_slice(key).get_shape()) == shape for key, shape in shapes.items()
                )
                if not right:
                    raise self.damaged(name)
                return {key: file.get_tensor(key) for key in names}, dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise self.damaged(name) from error

    def damaged(self, name: str) -> NqEdgeError:
        """The error for a file whose contents cannot be this run's."""
        return NqEdgeError("NQ-RESUME", f"{self.folder}/{name} is damaged or belongs to another run.", _ADVICE)
