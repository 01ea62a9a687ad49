# SPDX-License-Identifier: Apache-2.0
"""What a compression run has done so far, on disk, so that an interrupted run goes on where it was.

A folder beside the output: `run.json` says which run it is, `start.safetensors` holds the calibration windows and the
importances, `sensitivities.safetensors` what ranks were made from where it was measured, `block-0000.safetensors` and
so on the finished blocks (packed signs, float32 scales). The streams are not stored: running the finished blocks again
gives them, bit for bit on the CPU at an equal number of threads. Each file appears whole, under its final name, or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import NqEdgeError
from ..system.files import read_json, write_json
from .calibrate.importances import Importance
from .tune.layers import SignFactors

__all__ = ["FinishedBlock", "RunState", "fingerprint"]

_FORMAT = 1
#: Numbers that are summed at one time, in float64.
_SUMMED = 1 << 20
_ADVICE = "Delete it to start anew, or pass --overwrite."


@dataclass
class FinishedBlock:
    """One block's outcome.

    Attributes:
        factors: linear name inside the block -> hardened factors.
        error: mean relative weighted error of its factorizations.
        undone: (stage, linear name) of the tuning stages that were reverted.
    """

    factors: dict[str, SignFactors]
    error: float
    undone: list[tuple[str, str]]


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


def _block_name(index: int) -> str:
    return f"block-{index:04d}.safetensors"


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
        folder: Path | None,
        identity: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps({"format": _FORMAT, **identity}))
        self._open, self._writes = False, writes
        # What this run writes itself is not read again, whichever process of it asks.
        self._finished = 0
        if folder is None or not (folder / "run.json").is_file():
            return
        if resume:
            self._must_match(read_json(folder / "run.json", "NQ-RESUME"), self._identity)
            self._open = True
            while (folder / _block_name(self._finished)).is_file():
                self._finished += 1
        elif not overwrite:
            hint = "Continue it with --resume, or delete the folder."
            raise NqEdgeError("NQ-RESUME", f"{self.describe()}.", hint)

    def _begin(self, folder: Path) -> None:
        """Make the folder for the first file; a run that fails before it has anything to keep leaves nothing."""
        if self._open:
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(folder / "run.json", self._identity)
        self._open = True

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
        if self.folder is not None and self._open:
            shutil.rmtree(self.folder, ignore_errors=True)

    def keep_start(self, windows: Tensor, importances: Mapping[str, Importance]) -> None:
        """Store the windows and the importances."""
        parts = {
            f"{name}.{part}": getattr(i, part) for name, i in importances.items() for part in ("inputs", "outputs")
        }
        self._write("start.safetensors", {"windows": windows, **parts}, {})

    def start(self, layers: Mapping[str, nn.Linear]) -> tuple[Tensor, dict[str, Importance]] | None:
        """The stored windows and importances, or None."""
        shapes = {f"{name}.inputs": (layer.in_features,) for name, layer in layers.items()}
        shapes.update({f"{name}.outputs": (layer.out_features,) for name, layer in layers.items()})
        read = self._read("start.safetensors", shapes, ("windows",))
        if read is None:
            return None
        found, _ = read
        return found["windows"], {
            name: Importance(found[f"{name}.inputs"], found[f"{name}.outputs"]) for name in layers
        }

    def keep_sensitivities(self, errors: Tensor) -> None:
        """Store the measured errors that ranks were made from: on a GPU another measurement may round another way."""
        self._write("sensitivities.safetensors", {"errors": errors}, {})

    def sensitivities(self, layers: int) -> Tensor | None:
        """The stored errors, (layers, 3), or None."""
        read = self._read("sensitivities.safetensors", {"errors": (layers, 3)})
        if read is not None and not bool(torch.isfinite(read[0]["errors"]).all()):
            raise self._damaged("sensitivities.safetensors")
        return None if read is None else read[0]["errors"]

    def keep_block(self, index: int, block: FinishedBlock) -> None:
        """Store a finished block."""
        tensors: dict[str, Tensor] = {}
        for name, factors in block.factors.items():
            tensors[f"{name}.u"], tensors[f"{name}.v"] = factors.u_words, factors.v_words
            tensors[f"{name}.scale_out"], tensors[f"{name}.scale_in"] = factors.scale_out, factors.scale_in
            if factors.bias is not None:
                tensors[f"{name}.bias"] = factors.bias
        notes = {"error": repr(block.error), "undone": json.dumps(block.undone)}
        self._write(_block_name(index), tensors, notes)

    def block(self, index: int, layers: Mapping[str, nn.Linear], ranks: Mapping[str, int]) -> FinishedBlock | None:
        """A stored block, or None.

        Args:
            index: of the block.
            layers: linear name -> a layer of the same shape.
            ranks: linear name -> rank.
        """
        if index >= self._finished:
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in layers.items():
            m, n, r = layer.out_features, layer.in_features, ranks[name]
            shapes[f"{name}.u"], shapes[f"{name}.v"] = (m, -(-r // 32)), (r, -(-n // 32))
            shapes[f"{name}.scale_out"], shapes[f"{name}.scale_in"] = (m,), (n,)
            if layer.bias is not None:
                shapes[f"{name}.bias"] = (m,)
        read = self._read(_block_name(index), shapes)
        if read is None:
            return None
        found, notes = read
        factors = {}
        for name in layers:
            if {found[f"{name}.u"].dtype, found[f"{name}.v"].dtype} != {torch.int32}:
                raise self._damaged(_block_name(index))
            factors[name] = SignFactors.from_words(
                found[f"{name}.u"],
                found[f"{name}.v"],
                found[f"{name}.scale_out"],
                found[f"{name}.scale_in"],
                found.get(f"{name}.bias"),
            )
        try:
            undone = [(str(stage), str(name)) for stage, name in json.loads(notes.get("undone", "[]"))]
            return FinishedBlock(factors, float(notes.get("error", "nan")), undone)
        except ValueError as error:
            raise self._damaged(_block_name(index)) from error

    def _write(self, name: str, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        """Write a file under a temporary name, flush it, give it its name."""
        if self.folder is None or not self._writes:
            return
        temporary = self.folder / f".{name}.partial"
        try:
            self._begin(self.folder)
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, temporary, notes or None)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {self.folder / name}: {error}.") from error

    def _read(
        self, name: str, shapes: Mapping[str, tuple[int, ...]], free: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """All tensors of a file, their names and shapes checked before they are read."""
        if self.folder is None or not self._open or not (self.folder / name).is_file():
            return None
        try:
            with safe_open(self.folder / name, framework="pt") as file:
                names = set(file.keys())
                right = names == set(shapes) | set(free) and all(
                    tuple(file.get_slice(key).get_shape()) == shape for key, shape in shapes.items()
                )
                if not right:
                    raise self._damaged(name)
                return {key: file.get_tensor(key) for key in names}, dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> NqEdgeError:
        return NqEdgeError("NQ-RESUME", f"{self.folder}/{name} is damaged or belongs to another run.", _ADVICE)
