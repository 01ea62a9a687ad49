# SPDX-License-Identifier: Apache-2.0
"""Several sequences over one loaded model: what a backend promises to whoever serves many texts at once.

A *slot* is room for one sequence's keys and values. One call appends any number of tokens to any of the slots, so a
decode step of several texts, a piece of a prompt and the check of drafted tokens are the same thing: rows.
`Slots` is the promise, `SerialSlots` the part of it that does not depend on what computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import NqEdgeError
from .serial import Serial

__all__ = ["SerialSlots", "SlotMemory", "SlotRow", "Slots"]


@dataclass(frozen=True)
class SlotRow:
    """Tokens that one call appends to one slot.

    Attributes:
        slot: from 0.
        ids: token ids, at least one.
        logits: how many of these tokens, counted from the last one, get logits: 0 in the middle of a prompt, 1 to go
            on with the text, all to check drafted tokens.

    Example:
        >>> SlotRow(2, (5, 7)).logits
        1
    """

    slot: int
    ids: Sequence[int]
    logits: int = 1


@dataclass(frozen=True)
class SlotMemory:
    """Memory of all slots together, bytes.

    Attributes:
        held: what is allocated for keys and values now.
        most: what will be, once every slot has held a whole context.
        token: of one token in one slot.
    """

    held: int
    most: int
    token: int


@runtime_checkable
class Slots(Protocol):
    """A loaded model with several sequences of their own lengths.

    Several threads may call it: a call waits for the one before it, `close` too.

    Attributes:
        name: the backend's: "onnxruntime", "cuda", ...
        kernel: see `Backend.kernel`.
        vocab_size: width of the logits.
        max_context: most tokens of one slot.
        count: number of slots.
        most_tokens: most tokens of one `forward`, all rows together.
        together: whether the rows of a call share their passes over the weights, so that more rows cost less each;
            where not, each slot is a run of its own.
        exact: whether a token's logits are the same to the bit whatever else is computed in the same call, and however
            a text is cut into calls.
        form: what arrays of `save` depend on, as one line: model, number type, layout. Arrays of another form are not
            for this model.
    """

    name: str
    kernel: str
    vocab_size: int
    max_context: int
    count: int
    most_tokens: int
    together: bool
    exact: bool
    form: str

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each slot, int64 [count]; the caller's own."""
        ...

    @property
    def memory(self) -> SlotMemory:
        """Memory of keys and values."""
        ...

    def forward(self, rows: Sequence[SlotRow]) -> list[np.ndarray]:
        """Append tokens to slots, all in one call, and compute logits.

        Args:
            rows: at least one, and at most one for a slot.

        Returns:
            For each row, in order: float32 [row.logits, vocab_size]; the caller's own.

        Raises:
            NqEdgeError: NQ-PROMPT when tokens do not fit a slot or are not in the vocabulary, NQ-OPTION for rows that
                contradict each other, too many tokens, or a closed model. No length changes then.
        """
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget the tokens of a slot from `length` on; 0 empties it.

        Raises:
            NqEdgeError: NQ-OPTION when the slot holds fewer tokens.
        """
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source` and nothing else; shared where the backend can.

        Raises:
            NqEdgeError: NQ-OPTION when the source holds fewer tokens.
        """
        ...

    def save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        """Keys and values of a slot's first `length` tokens, by name; the caller's own. `load` takes them back.

        Raises:
            NqEdgeError: NQ-OPTION when the slot holds fewer tokens.
        """
        ...

    def load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Let a slot hold `length` tokens that `save` gave, of a model of the same `form`, and nothing else.

        Raises:
            NqEdgeError: NQ-OPTION for other names, types or shapes than `save` gives, and for values that are not
                finite; the slot is as before then.
        """
        ...

    def close(self) -> None:
        """Give back all memory, once the call that runs has ended; further calls are refused. May be called twice."""
        ...

    def __enter__(self) -> Slots: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class SerialSlots(Serial):
    """What all backends do alike: one call at a time, checked arguments, lengths, and being closed.

    Args:
        vocab_size, max_context, count: see `Slots`.

    Raises:
        NqEdgeError: NQ-OPTION for a number of slots that is not from 1 to 256.
    """

    name: str
    kernel: str
    most_tokens: int
    together: bool
    exact: bool
    form: str

    #: Most slots: more than any machine here can hold contexts for.
    MOST = 256

    def __init__(self, vocab_size: int, max_context: int, *, count: int) -> None:
        if type(count) is not int or not 1 <= count <= self.MOST:
            raise NqEdgeError("NQ-OPTION", f"slots must be a whole number from 1 to {self.MOST}, got {count!r}.")
        super().__init__("the slots are closed.")
        self.vocab_size, self.max_context, self.count = vocab_size, max_context, count
        self._lengths = np.zeros(count, dtype=np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each slot, int64 [count]; a copy."""
        return self._lengths.copy()

    @property
    @abstractmethod
    def memory(self) -> SlotMemory:
        """Memory of keys and values."""

    def forward(self, rows: Sequence[SlotRow]) -> list[np.ndarray]:
        """Append tokens and compute logits; see `Slots.forward`."""
        with self._computing():
            ids = self._checked(rows)
            try:
                logits = self._forward(rows, ids)
            except MemoryError as error:  # of a cache that grows, or of the logits
                raise NqEdgeError("NQ-MEMORY", f"there is too little memory to go on ({error}).") from error
            for row, new in zip(rows, ids, strict=True):
                self._lengths[row.slot] += len(new)
            return logits

    def truncate(self, slot: int, length: int) -> None:
        """Forget tokens from `length` on; see `Slots.truncate`."""
        with self._computing():
            self._check_held(slot, length)
            self._truncate(slot, length)
            self._lengths[slot] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot into another; see `Slots.copy_prefix`."""
        with self._computing():
            self._check_held(source, length)
            self._check_slot(target)
            if source != target:
                self._copy(source, target, length)
            else:
                self._truncate(target, length)
            self._lengths[target] = length

    def save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        """Keys and values of a slot's first tokens; see `Slots.save`."""
        with self._computing():
            self._check_held(slot, length)
            return self._save(slot, length)

    def load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Put saved tokens into a slot; see `Slots.load`."""
        with self._computing():
            self._check_slot(slot)
            if type(length) is not int or not 0 <= length <= self.max_context:
                raise NqEdgeError("NQ-OPTION", f"a slot holds 0 to {self.max_context} tokens, got {length!r}.")
            self._load(slot, arrays, length)
            self._lengths[slot] = length

    def close(self) -> None:
        """Give back all memory; waits for the call that runs."""
        with self._lock:
            self._lengths[:] = 0
            super().close()

    def _checked(self, rows: Sequence[SlotRow]) -> list[list[int]]:
        """The ids of each row, once all rows are seen to be good.

        In Python's own numbers: beside a step that fills the caches with weights, a call of NumPy takes longer than a
        few of them.
        """
        if not rows or len({row.slot for row in rows}) != len(rows):
            raise NqEdgeError("NQ-OPTION", "a call takes one row or more, each of another slot.")
        ids = [_whole_numbers(row) for row in rows]
        for row, new in zip(rows, ids, strict=True):
            self._check_slot(row.slot)
            if not 0 <= row.logits <= len(new):
                raise NqEdgeError("NQ-OPTION", f"logits of {row.logits} of {len(new)} tokens were asked for.")
            low, high = min(new), max(new)
            if low < 0 or high >= self.vocab_size:
                wrong = low if low < 0 else high
                raise NqEdgeError("NQ-PROMPT", f"token id {wrong} is outside the vocabulary of {self.vocab_size}.")
            total = int(self._lengths[row.slot]) + len(new)
            if total > self.max_context:
                raise NqEdgeError("NQ-PROMPT", f"{total} tokens do not fit the context of {self.max_context} tokens.")
        if sum(map(len, ids)) > self.most_tokens:
            raise NqEdgeError("NQ-OPTION", f"one call takes {self.most_tokens} tokens at most.")
        return ids

    def _check_slot(self, slot: int) -> None:
        if type(slot) is not int or not 0 <= slot < self.count:
            raise NqEdgeError("NQ-OPTION", f"slot must be a whole number from 0 to {self.count - 1}, got {slot!r}.")

    def _check_held(self, slot: int, length: int) -> None:
        self._check_slot(slot)
        if type(length) is not int or not 0 <= length <= self._lengths[slot]:
            raise NqEdgeError("NQ-OPTION", f"slot {slot} holds {self._lengths[slot]} tokens, not {length!r}.")

    @abstractmethod
    def _forward(self, rows: Sequence[SlotRow], ids: Sequence[list[int]]) -> list[np.ndarray]:
        """`forward` with checked rows; lengths are advanced by the caller. The lock is held, here and below."""

    def _truncate(self, slot: int, length: int) -> None:
        """Forget tokens; nothing to do where the length alone says what counts."""
        return

    @abstractmethod
    def _copy(self, source: int, target: int, length: int) -> None:
        """Copy between different slots."""

    @abstractmethod
    def _save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        """Arrays of a slot's first tokens."""

    @abstractmethod
    def _load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Check arrays and take them over."""


def _whole_numbers(row: SlotRow) -> list[int]:
    """A row's token ids.

    Raises:
        NqEdgeError: NQ-PROMPT for anything but a row of one whole number or more.
    """
    found = list(row.ids)
    if found and all(type(token) is int for token in found):
        return found
    array = np.asarray(row.ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise NqEdgeError("NQ-PROMPT", f"the token ids for slot {row.slot} are not a row of whole numbers.")
    numbers: list[int] = array.tolist()
    return numbers
