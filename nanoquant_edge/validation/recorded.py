# SPDX-License-Identifier: Apache-2.0
"""`reference.safetensors`: PyTorch's side of a validation, stored so that a board without PyTorch can compare.

| tensor | type | shape | |
| --- | --- | --- | --- |
| `windows` | int32 | w, L | token ids |
| `loss` | float64 | w | mean next-token loss of each window |
| `top_ids`, `top_logits` | int32, float32 | w, L, k | the 64 likeliest tokens of each position, likeliest first |
| `log_sum` | float64 | w, L | log of the sum of exponentials of each position's logits |
| `whole_places` | int32 | p, 2 | (window, position), ascending, of the rows below |
| `whole_logits` | float32 | p, vocabulary | logits of a few dozen positions in full |
| `inner.N` | float32 | t, channels | Nth inner value on the first t tokens of window 0 |
| `prompt.N`, `greedy.N`, `gap.N` | int32, int32, float32 | | prompt, continuation, its top-2 gaps |

The metadata holds `nq_reference` (version), `text`, and `inner` (JSON list of value names, in order of computation).
All logits of 4096 positions would be 800 MB for a vocabulary of 49152; this is about 40 MB.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..errors import NqEdgeError
from ..formats.bundle import REFERENCE_FILE, Bundle
from ..formats.checkpoint import TensorFile
from ..system.files import usual_mode
from .expected import ExpectedGreedy, ExpectedWindow, Reference

__all__ = ["RecordedReference", "Recorder"]

VERSION = "1"
#: Bytes of whole rows; with inner values (24 MB) and top tokens a file stays below 60 MB.
WHOLE_BYTES = 16 << 20
MAX_WHOLE = 64
_LARGEST_TOP = 1024


class Recorder:
    """A reference that keeps what passes through it. Wraps another and is used in its place.

    Args:
        source: where the values come from.
    """

    def __init__(self, source: Reference) -> None:
        self._source = source
        self.origin, self.text, self.windows = source.origin, source.text, source.windows
        self.inner_tokens = source.inner_tokens
        self._inner: dict[str, NDArray[np.float32]] = {}
        self._windows: dict[int, ExpectedWindow] = {}
        self._greedy: list[ExpectedGreedy] = []

    def inner(self) -> dict[str, NDArray[np.float32]]:
        """See `Reference.inner`."""
        self._inner = self._source.inner()
        return self._inner

    def window(self, index: int) -> ExpectedWindow:
        """See `Reference.window`; of the whole rows a few are kept, spread over all windows."""
        full = self._source.window(index)
        count, vocabulary = len(self.windows), full.logits.shape[1]
        share = max(1, min(MAX_WHOLE, WHOLE_BYTES // (4 * vocabulary)) // count)
        length = len(full.positions)
        chosen = np.unique(np.linspace(0, length - 1, share + 2).astype(int)[1:-1])
        thinned = ExpectedWindow(
            full.loss, full.top_ids, full.top_logits, full.log_sum, full.positions[chosen], full.logits[chosen].copy()
        )
        self._windows[index] = thinned
        return full

    def greedy(self) -> list[ExpectedGreedy]:
        """See `Reference.greedy`."""
        self._greedy = self._source.greedy()
        return self._greedy

    def save(self, folder: Path) -> Path:
        """Write `reference.safetensors` into a folder: whole, or not at all.

        Raises:
            NqEdgeError: NQ-OUTPUT when it cannot be written.
        """
        windows = [self._windows[index] for index in range(len(self.windows))]
        positions = [(index, position) for index, window in enumerate(windows) for position in window.positions]
        tensors: dict[str, NDArray[Any]] = {
            "windows": self.windows.astype(np.int32),
            "loss": np.array([window.loss for window in windows], np.float64),
            "top_ids": np.stack([window.top_ids for window in windows]).astype(np.int32),
            "top_logits": np.stack([window.top_logits for window in windows]).astype(np.float32),
            "log_sum": np.stack([window.log_sum for window in windows]).astype(np.float64),
            "whole_places": np.array(positions, np.int32),
            "whole_logits": np.concatenate([window.logits for window in windows]).astype(np.float32),
        }
        for number, value in enumerate(self._inner.values()):
            tensors[f"inner.{number}"] = np.ascontiguousarray(value, np.float32)
        for number, run in enumerate(self._greedy):
            tensors[f"prompt.{number}"] = run.prompt.astype(np.int32)
            tensors[f"greedy.{number}"] = run.tokens.astype(np.int32)
            tensors[f"gap.{number}"] = run.gaps.astype(np.float32)
        metadata = {"nq_reference": VERSION, "text": self.text, "inner": json.dumps(list(self._inner))}
        target = folder / REFERENCE_FILE
        try:
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{REFERENCE_FILE}.")
            os.close(handle)
            try:
                save_file(tensors, temporary, metadata)
                usual_mode(Path(temporary))
                Path(temporary).replace(target)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except (OSError, safetensors.SafetensorError) as error:
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {target} ({error}).", "Free some space.") from error
        return target


class RecordedReference:
    """See `Reference`. Reads a bundle's `reference.safetensors`; every tensor is checked before it is used.

    Args:
        bundle: an opened bundle.

    Raises:
        NqEdgeError: NQ-REFERENCE when there is none, or when its tensors contradict each other or the bundle.
    """

    origin = "recorded"

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.folder / REFERENCE_FILE
        if REFERENCE_FILE not in bundle.files:
            raise NqEdgeError("NQ-REFERENCE", f"{bundle.folder} has no recorded reference.")
        try:
            self._file = TensorFile(path)
            with safetensors.safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
        except (NqEdgeError, OSError, safetensors.SafetensorError) as error:
            raise NqEdgeError("NQ-REFERENCE", f"{path} cannot be read ({error}).") from error
        if metadata.get("nq_reference") != VERSION:
            raise self._bad(f"it has version {metadata.get('nq_reference')!r}, this program reads {VERSION}")
        self.text = metadata.get("text", "")[:200]
        self._vocabulary = bundle.vocab_size
        self._names = set(self._file.names())
        self._load(bundle)
        self._inner_names = self._checked_names(metadata.get("inner", "[]"))
        self._inner = {
            name: self._tensor(f"inner.{number}", "F32", (None, None)) for number, name in enumerate(self._inner_names)
        }
        lengths = {len(value) for value in self._inner.values()}
        self.inner_tokens = lengths.pop() if lengths else 0
        if lengths or self.inner_tokens > self.windows.shape[1]:
            raise self._bad("its inner values cover different numbers of tokens")

    def _load(self, bundle: Bundle) -> None:
        windows = self._ids("windows", (None, None))
        count, length = windows.shape
        if length < 2 or length > bundle.kv.capacity:
            raise self._bad(f"its windows have {length} tokens; the bundle holds 2 to {bundle.kv.capacity}")
        self.windows = windows
        self._loss = self._tensor("loss", "F64", (count,))
        self._log_sum = self._tensor("log_sum", "F64", (count, length))
        self._top_ids = self._ids("top_ids", (count, length, None))
        top = self._top_ids.shape[2]
        if top > min(_LARGEST_TOP, self._vocabulary):
            raise self._bad(f"it holds {top} likeliest tokens a position")
        self._top_logits = self._tensor("top_logits", "F32", (count, length, top))
        positions = self._tensor("whole_places", "I32", (None, 2)).astype(np.int64)
        order = positions[:, 0] * length + positions[:, 1]
        good = positions.min() >= 0 and positions[:, 0].max() < count and positions[:, 1].max() < length
        if not good or (np.diff(order) <= 0).any():
            raise self._bad("its whole_places are outside the windows, or out of order")
        self._whole_positions = positions
        self._whole = self._tensor("whole_logits", "F32", (len(positions), self._vocabulary))

    def _checked_names(self, text: str) -> list[str]:
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._bad("its list of inner values is not JSON") from error
        good = isinstance(names, list) and all(isinstance(name, str) and 0 < len(name) <= 200 for name in names)
        if not good or len(set(names)) != len(names):
            raise self._bad("its list of inner values is malformed")
        return list(names)

    def _bad(self, why: str) -> NqEdgeError:
        return NqEdgeError(
            "NQ-REFERENCE",
            f"{REFERENCE_FILE} is not usable: {why}.",
            "Record it again with `nq-edge validate BUNDLE --against CHECKPOINT --record`.",
        )

    def _tensor(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A tensor whose type, shape (None: any size) and values were checked."""
        if name not in self._names:
            raise self._bad(f"it has no {name}")
        found = self._file.shape(name)
        fits = len(found) == len(shape) and all(w in (None, f) for w, f in zip(shape, found, strict=True))
        if not fits or self._file.dtype(name) != dtype or not math.prod(found):
            raise self._bad(f"{name} is {self._file.dtype(name)} {list(found)}")
        value = self._file.tensor(name)
        if dtype.startswith("F") and not all(np.isfinite(part).all() for part in value):
            raise self._bad(f"{name} holds a value that is not finite")
        return value

    def _ids(self, name: str, shape: tuple[int | None, ...]) -> NDArray[np.int64]:
        value = self._tensor(name, "I32", shape)
        if value.min() < 0 or value.max() >= self._vocabulary:
            raise self._bad(f"{name} holds ids outside the vocabulary of {self._vocabulary}")
        return value.astype(np.int64)

    def inner(self) -> dict[str, NDArray[np.float32]]:
        """See `Reference.inner`."""
        return self._inner

    def window(self, index: int) -> ExpectedWindow:
        """See `Reference.window`."""
        inside = self._whole_positions[:, 0] == index
        return ExpectedWindow(
            float(self._loss[index]),
            self._top_ids[index],
            np.asarray(self._top_logits[index]),
            np.asarray(self._log_sum[index]),
            self._whole_positions[inside, 1],
            np.asarray(self._whole[inside]),
        )

    def greedy(self) -> list[ExpectedGreedy]:
        """See `Reference.greedy`."""
        runs: list[ExpectedGreedy] = []
        while f"prompt.{len(runs)}" in self._names:
            number = len(runs)
            prompt = self._ids(f"prompt.{number}", (None,))
            tokens = self._ids(f"greedy.{number}", (None,))
            gaps = self._tensor(f"gap.{number}", "F32", (len(tokens),))
            runs.append(ExpectedGreedy(prompt, tokens, np.asarray(gaps)))
        return runs
