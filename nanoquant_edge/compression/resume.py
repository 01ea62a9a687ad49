# SPDX-License-Identifier: Apache-2.0
"""What a compression run has done so far, on disk, so that an interrupted run goes on where it was.

A folder beside the output: `run.json` says which run it is and carries a hash of that, the other files hold tensors
(`kept_results`) and a hash of them and of the run that they belong to. Each file appears whole, under its final name,
or not at all. One run at a time holds the folder's lock, and only files of these names are ever removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NqEdgeError
from ..system.disk import lock
from ..system.files import read_json, write_json
from ..system.written import seal_is_right, sealed

__all__ = ["RunState", "fingerprint", "refuse_state", "state_folder"]

#: Raised with every change of the files.
_FORMAT = 2
_RUN_FILE = "run.json"
_RESULT = re.compile(r"(start|sensitivities|block-\d{4,})\.safetensors")
#: A result that was being written, and what `write_json` was writing.
_UNFINISHED = re.compile(rf"\.({_RESULT.pattern})\.partial|\.{re.escape(_RUN_FILE)}\.\w+")
#: Values of a weight that are hashed at one time.
_HASHED_VALUES = 1 << 22
_ADVICE = "Delete it to start anew, or pass --overwrite."
_ELSEWHERE = "Choose another --output, or move it away."


def fingerprint(weights: Iterable[tuple[str, Tensor]], config: Mapping[str, Any]) -> str:
    """A hash that tells models apart: config.json, and the name, shape and every bit of each parameter, in order."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, parameter in weights:
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        for values in parameter.detach().flatten().split(_HASHED_VALUES):
            digest.update(_bytes(values))
    return digest.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    """The bytes of a tensor, in order."""
    return values.contiguous().flatten().cpu().view(torch.uint8).numpy().data


def state_folder(output: Path) -> Path:
    """Where the state of a run for an output lies."""
    return output.absolute().with_name(f"{output.name}.resume")


def refuse_state(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what stands where a run is going to keep its state, before the work for it begins.

    Raises:
        NqEdgeError: NQ-RESUME when something else than a state is there, a state that another run uses, or one that is
            neither to be continued nor to be overwritten.
    """
    if folder.is_dir():
        try:
            held = lock(folder)
        except BlockingIOError as error:
            raise _in_use(folder) from error
        if held is not None:
            os.close(held)
    _refuse_found(folder, resume=resume, overwrite=overwrite)


def _in_use(folder: Path) -> NqEdgeError:
    message = f"{folder} is in use: another run for the same output goes on."
    return NqEdgeError("NQ-RESUME", message, "Wait until it ends, or choose another --output.")


def _refuse_found(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises NQ-RESUME for anything but a state that may be continued or deleted."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise NqEdgeError("NQ-RESUME", f"{folder} is where the state is kept, and is no folder.", _ELSEWHERE)
    if not any(folder.iterdir()):
        return
    identity = read_json(folder / _RUN_FILE, "NQ-RESUME") if (folder / _RUN_FILE).is_file() else {}
    if identity.get("format") != _FORMAT or not seal_is_right(identity):
        message = f"{folder} is where the state is kept, and holds something else, or that of another version."
        raise NqEdgeError("NQ-RESUME", message, _ELSEWHERE)
    if _results(folder) and not (resume or overwrite):
        hint = "Continue it with --resume, or replace it with --overwrite."
        raise NqEdgeError("NQ-RESUME", f"{_described(folder)}.", hint)


def _results(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _RESULT.fullmatch(path.name) and path.is_file())


def _described(folder: Path) -> str:
    """What a state holds and how large it is, in words."""
    results = _results(folder)
    blocks = sum(path.name.startswith("block-") for path in results)
    size = sum(path.stat().st_size for path in results) / 1e6
    return f"{folder} holds an interrupted run: {blocks} finished blocks, {size:.1f} MB"


class RunState:
    """The state folder of one run; nothing is kept when `folder` is None.

    Args:
        folder: where the state lies.
        identity: JSON that says which run this is; a state of another run is not continued.
        resume: continue what is there.
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
        # As JSON has it: what is compared with a file must have gone the same way.
        self._identity = sealed(json.loads(json.dumps({"format": _FORMAT, **(identity or {})})))
        self._resume, self._overwrite, self._writes = resume, overwrite, writes
        # What this run writes itself is not read again, whichever process of it asks.
        self._found: frozenset[str] = frozenset()
        self._finished = False
        if folder is not None:
            self._look(folder)

    def _look(self, folder: Path) -> None:
        """See what an interrupted run left, and whether it may be continued or deleted."""
        _refuse_found(folder, resume=self._resume, overwrite=self._overwrite)
        results = _results(folder) if folder.is_dir() else []
        if self._resume and results:
            self._must_match(read_json(folder / _RUN_FILE, "NQ-RESUME"), self._identity)
            self._found = frozenset(path.name for path in results)

    def _must_match(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for key in sorted((set(found) | set(wanted)) - {"sha256"}):
            old, new = found.get(key), wanted.get(key)
            if isinstance(old, dict) and isinstance(new, dict):
                self._must_match(old, new)
            elif old != new:
                raise NqEdgeError(
                    "NQ-RESUME", f"{self.folder} belongs to another run: {key} was {old!r}, now it is {new!r}.", _ADVICE
                )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the state's folder for as long as this lasts; a run that kept nothing leaves nothing behind.

        Raises:
            NqEdgeError: NQ-RESUME when another run holds it.
        """
        if self.folder is None or not self._writes:
            yield
            return
        missing = [parent for parent in self.folder.parents if not parent.exists()]
        held = self._held(self.folder)
        try:
            self._look(self.folder)  # another run may have come and gone since
            if not self._found:
                self._remove_files()
                write_json(self.folder / _RUN_FILE, self._identity)
            yield
        finally:
            # A folder of this name is another run's once this run has finished.
            if not self._finished and self.folder.is_dir() and not _results(self.folder):
                self.finish()
            with contextlib.suppress(OSError):
                for parent in missing:
                    parent.rmdir()
            if held is not None:
                os.close(held)

    def _held(self, folder: Path) -> int | None:
        """Make the folder where there is none, and take its lock."""
        try:
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                held = lock(folder)
                # A run that ended in between took away the folder that was locked.
                if held is None or (folder.is_dir() and os.path.samestat(os.fstat(held), folder.stat())):
                    return held
                os.close(held)
        except BlockingIOError as error:
            raise _in_use(folder) from error
        except OSError as error:
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {folder}: {error.strerror}.") from error

    def _remove_files(self) -> None:
        assert self.folder is not None
        for path in self.folder.iterdir():
            if path.name == _RUN_FILE or _RESULT.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def describe(self) -> str:
        """What the state holds and how large it is, in words."""
        return "no state" if self.folder is None else _described(self.folder)

    def finish(self) -> None:
        """Delete the state; the checkpoint stands. Whatever else lies in the folder stays there."""
        if self.folder is not None and self._writes:
            self._finished = True
            with contextlib.suppress(OSError):
                self._remove_files()
                self.folder.rmdir()

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
        assert _RESULT.fullmatch(name)
        contents = {key: value.contiguous().cpu() for key, value in tensors.items()}
        hashed = {**(notes or {}), "sha256": self._hash(name, contents, notes or {})}
        temporary = self.folder / f".{name}.partial"
        try:
            save_file(contents, temporary, hashed)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {self.folder / name}: {error}.") from error

    def _hash(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
        """Hash of a file's name and contents and of the run that they belong to."""
        shapes = {key: [str(value.dtype), list(value.shape)] for key, value in tensors.items()}
        header = [self._identity["sha256"], name, shapes, dict(notes)]
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for key in sorted(tensors):
            digest.update(_bytes(tensors[key]))
        return digest.hexdigest()

    def read(
        self, name: str, shapes: Mapping[str, tuple[int, ...]], any_shape: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and notes of a file that the interrupted run left, or None where it left none.

        Args:
            name: of the file.
            shapes: tensor -> shape, checked before it is read.
            any_shape: further tensors, of whatever shape.

        Raises:
            NqEdgeError: NQ-RESUME when the file is damaged, is another run's, or holds other tensors than these.
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
                tensors, notes = {key: file.get_tensor(key) for key in names}, dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise self.damaged(name) from error
        if notes.pop("sha256", "") != self._hash(name, tensors, notes):
            raise self.damaged(name)
        return tensors, notes

    def damaged(self, name: str) -> NqEdgeError:
        """The error for a file whose contents cannot be this run's."""
        return NqEdgeError("NQ-RESUME", f"{self.folder}/{name} is damaged or belongs to another run.", _ADVICE)
