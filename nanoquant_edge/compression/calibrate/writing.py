# SPDX-License-Identifier: Apache-2.0
"""Text that a dense model writes itself, many rows at a time: what is asked of a row is a script, a plain generator.

A row's tokens are given (a prompt) or drawn (an answer), one a step for each row, so no row waits for another: a row
whose text ends begins the next one at once. Rows depend on nothing but their script, the seed and their number, not on
how many of them the memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..execution.static_step import StaticStep, affordable_rows, written_in_steps

__all__ = ["Script", "Turn", "Writing", "end_tokens", "write"]


@dataclass(frozen=True)
class Turn:
    """What comes next in a row: tokens that are given, and then tokens that the model draws.

    Attributes:
        given: token ids to read first.
        longest: most tokens to draw; 0 draws none.
        begins: whether a new text begins with `given`, which sees nothing of what stands before it.

    Raises:
        ValueError: for a new text without a token to begin with.
    """

    given: Sequence[int]
    longest: int
    begins: bool = True

    def __post_init__(self) -> None:
        if self.begins and not self.given:
            raise ValueError("a text begins with a token that is given")


#: A row: yields turns, is sent what was drawn in each, and returns when it has no more of them.
Script = Generator[Turn, list[int], None]


@dataclass(frozen=True)
class Writing:
    """How rows are written.

    Attributes:
        length: tokens of a row at most; a row that is full ends in the middle of a turn.
        temperature: of the draws; 0 takes the likeliest token.
        seed: random seed of the draws.
        ends: ids that end a turn.
        slots: tokens that a text can look back to; `length` where it is 0.
        first: number of the first row, which with the seed decides its draws.
        dtype: of matrix products and caches; None is bfloat16 on a GPU, and float32 on a CPU, which would convert all
            weights at every step.
        told: called after each step with the number of tokens in all rows so far.
    """

    length: int
    temperature: float = 1.0
    seed: int = 0
    ends: Sequence[int] = ()
    slots: int = 0
    first: int = 0
    dtype: torch.dtype | None = None
    told: Callable[[int], None] = field(default=lambda tokens: None)


def write(model: Any, scripts: Sequence[Script], writing: Writing) -> list[list[int]]:
    """Let a model write rows.

    Takes as many of them at a time as `affordable_rows` says, in groups of even size.

    Args:
        model: transformers causal language model on its device.
        scripts: one for each row.
        writing: how.

    Returns:
        Token ids of each row, given and drawn, at most `writing.length`.

    Example:
        >>> def story() -> Script:
        ...     yield Turn([1], longest=20)
    """
    if not scripts:
        return []
    dtype = writing.dtype or (torch.bfloat16 if model.device.type == "cuda" else torch.float32)
    slots = min(writing.length, writing.slots or writing.length)
    groups = -(-len(scripts) // affordable_rows(model, slots, dtype))
    rows = -(-len(scripts) // groups)
    step = StaticStep(model, rows, slots, dtype=dtype, temperature=writing.temperature)
    try:
        with written_in_steps(model):
            return _Rows(step, scripts, writing).written()
    finally:
        step.close()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next asks the device how much is free


class _Rows:
    """The rows that are being written, as arrays over rows; only a row whose turn ends is looked at by itself."""

    def __init__(self, step: StaticStep, scripts: Sequence[Script], writing: Writing) -> None:
        self._step, self._scripts, self._writing = step, scripts, writing
        rows = step.rows
        self._found: list[list[int]] = [[] for _ in scripts]
        self._waiting: Iterator[int] = iter(range(len(scripts)))
        self._script = np.full(rows, -1)
        self._ids = np.zeros((rows, writing.length), np.int64)
        self._filled, self._age, self._left, self._answer = (np.zeros(rows, np.int64) for _ in range(4))
        self._chances = np.zeros((rows, writing.length), np.float32)
        #: Tokens still to be read, row by row, and how many of them have been.
        self._given = np.zeros((rows, 64), np.int64)
        self._read, self._to_read = (np.zeros(rows, np.int64) for _ in range(2))
        self._ends = np.asarray(writing.ends, np.int64)
        self._tokens = 0

    def written(self) -> list[list[int]]:
        """Write until every script has its row."""
        for row in range(self._step.rows):
            self._begin(row)
        every = np.arange(self._step.rows)
        while (busy := self._script >= 0).any():
            if not self._age[busy].any():
                self._step.restart()
            fed = self._given[every, np.minimum(self._read, self._given.shape[1] - 1)]
            place = np.minimum(self._filled, self._writing.length - 1)
            self._ids[every[busy], place[busy]] = fed[busy]
            chances = torch.from_numpy(self._chances[every, place])
            drawn = self._step(torch.from_numpy(fed), torch.from_numpy(self._age), chances).numpy()
            self._filled += busy
            self._age += busy
            self._read += busy
            drawing = busy & (self._read == self._to_read)
            self._left -= drawing
            full = busy & (self._filled == self._writing.length)
            over = drawing & ~full & (np.isin(drawn, self._ends) | (self._left <= 0))
            going_on = drawing & ~over
            # A token that was drawn is what the row is given next.
            self._given[going_on, 0], self._read[going_on], self._to_read[going_on] = drawn[going_on], 0, 1
            for row in np.nonzero(full)[0].tolist():
                self._close(row)
            for row in np.nonzero(over)[0].tolist():
                self._turn_over(row, int(drawn[row]))
            self._tokens += int(busy.sum())
            self._writing.told(self._tokens)
        return self._found

    def _turn_over(self, row: int, last: int) -> None:
        """A turn has ended with a token that is not in the row yet."""
        answer = [*self._ids[row, self._answer[row] : self._filled[row]].tolist(), last]
        if not self._next_turn(row, answer, [last]):
            self._close(row)

    def _next_turn(self, row: int, answer: list[int] | None, pending: list[int]) -> bool:
        """Ask a row's script what comes next, until something is to be drawn; False where the row is finished.

        Args:
            row: which.
            answer: what the last turn drew; None begins the script.
            pending: tokens that belong to the row and were not read.
        """
        script = self._scripts[self._script[row]]
        while True:
            try:
                turn = next(script) if answer is None else script.send(answer)
            except StopIteration:
                self._store(row, pending)
                return False
            if turn.begins:
                self._store(row, pending)
                self._age[row], pending = 0, []
            pending = [*pending, *turn.given]
            if self._filled[row] + len(pending) >= self._writing.length:
                self._store(row, pending)
                return False
            longest = min(turn.longest, self._step.positions - int(self._age[row]) - len(pending))
            if pending and longest > 0:
                break
            answer = []
        if len(pending) > self._given.shape[1]:
            self._given = np.pad(self._given, ((0, 0), (0, len(pending) - self._given.shape[1])))
        self._given[row, : len(pending)] = pending
        self._read[row], self._to_read[row], self._left[row] = 0, len(pending), longest
        self._answer[row] = self._filled[row] + len(pending)
        return True

    def _store(self, row: int, ids: Sequence[int]) -> None:
        """Put tokens into a row that the model need not read, since nothing is drawn after them."""
        start = int(self._filled[row])
        ids = ids[: self._writing.length - start]
        self._ids[row, start : start + len(ids)] = ids
        self._filled[row] += len(ids)

    def _close(self, row: int) -> None:
        """Take a finished row over and begin the next one in its place."""
        number = int(self._script[row])
        self._scripts[number].close()
        self._found[number] = self._ids[row, : self._filled[row]].tolist()
        self._begin(row)

    def _draws(self, number: int) -> np.ndarray:
        """Random numbers of a row, float32 (length,)."""
        key = [self._writing.seed & (1 << 64) - 1, self._writing.first + number]
        return np.random.Generator(np.random.Philox(key=key)).random(self._writing.length, np.float32)

    def _begin(self, row: int) -> None:
        """Begin the next script that has anything to draw, where there is one."""
        for number in self._waiting:
            self._script[row] = number
            self._filled[row] = self._age[row] = 0
            if self._writing.temperature:
                self._chances[row] = self._draws(number)
            if self._next_turn(row, None, []):
                return
            self._found[number] = self._ids[row, : self._filled[row]].tolist()
        self._script[row] = -1
        self._filled[row] = self._age[row] = 0


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer, as the model's generation settings, its configuration or its tokenizer name them."""
    for found in (
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ):
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return []
