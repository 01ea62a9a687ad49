# SPDX-License-Identifier: Apache-2.0
"""One slot over a backend that has a single sequence, such as a TensorRT engine or ONNX Runtime on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import NqEdgeError
from .backend import Backend
from .slots import SerialSlots, SlotMemory, SlotRow

__all__ = ["SingleSlot"]

#: Tokens of a prompt in one call, between two looks at who wants what.
_CHUNK = 512


class SingleSlot(SerialSlots):
    """A backend as one slot; closes it.

    The backend can only go on or begin anew. Tokens that are forgotten from the end are taken back by computing what
    stays once more, when the next tokens come.

    Args:
        backend: a loaded model, which nobody else calls from now on.

    Example:
        >>> from nanoquant_edge.formats.bundle import Bundle
        >>> from nanoquant_edge.runtimes import open_backend
        >>> with SingleSlot(open_backend(Bundle.open("bundle"), threads=1)) as slots:
        ...     first = slots.forward([SlotRow(0, [1, 5, 7])])[0]
        ...     slots.truncate(0, 2)
        ...     again = slots.forward([SlotRow(0, [7])])[0]
        >>> bool(np.allclose(first, again, atol=1e-4))
        True
    """

    most_tokens = _CHUNK
    together = False
    exact = False  # a text that is cut into other calls may differ in the last bits

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.vocab_size, backend.max_context, count=1)
        self._backend = backend
        self.name, self.kernel = backend.name, backend.kernel
        self.form = f"{backend.name}, one sequence"
        self._held: list[int] = []  # what the slot is said to hold
        self._computed = 0  # of these, how many the backend's cache does hold

    @property
    def memory(self) -> SlotMemory:
        """Unknown: a backend does not tell its bytes."""
        return SlotMemory(held=0, most=0, token=0)

    def _forward(self, rows: Sequence[SlotRow], ids: Sequence[list[int]]) -> list[np.ndarray]:
        (row,), (new,) = rows, ids
        self._held = self._held[: int(self._lengths[0])]
        if self._computed != len(self._held):
            self._backend.reset()
            self._computed = 0
            for start in range(0, len(self._held), _CHUNK):
                self._run(np.asarray(self._held[start : start + _CHUNK]), 0)
        logits = self._run(np.array(new), row.logits)
        self._held += new
        return [logits]

    def _run(self, ids: np.ndarray, count: int) -> np.ndarray:
        wanted = np.arange(len(ids) - max(count, 1), len(ids))  # no backend computes nothing
        logits = self._backend.forward(ids[None].astype(np.int64), positions=wanted[None])
        self._computed += len(ids)
        return logits[0, len(wanted) - count :]

    def _truncate(self, slot: int, length: int) -> None:
        if length != int(self._lengths[0]):
            self._computed = -1  # no length: begin anew before the next tokens

    def _copy(self, source: int, target: int, length: int) -> None:
        raise AssertionError("there is one slot")

    def _save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        raise NqEdgeError("NQ-OPTION", f"{self.name} gives no keys and values out; prefixes cannot be saved.")

    def _load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        raise NqEdgeError("NQ-OPTION", f"{self.name} takes no keys and values; prefixes cannot be loaded.")

    def _close(self) -> None:
        self._backend.close()
