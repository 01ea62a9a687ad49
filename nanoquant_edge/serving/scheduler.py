# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: one thread computes a step of all texts at once; texts come and go between any two steps.

A step is one call of the model. Every text that is being written gives it its last token, and tokens guessed ahead;
what is left of the step's size goes to prompts, a piece of each. So a text never waits for more of another's prompt
than one piece.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer
from ..runtimes.slots import SlotRow, Slots
from .answer import Answer
from .drafting import Drafter, Guess, NgramDrafter
from .options import SchedulerOptions
from .pace import Chance, StepTimes
from .prefix_file import Prefix, read_prefixes, write_prefixes
from .requests import BusyError, Outcome, Piece, Request
from .shelf import Shelf
from .statistics import Counters, Statistics
from .writing import Writing

__all__ = ["Scheduler"]


class _Job:
    """A request from its submission to its end."""

    def __init__(self, writing: Writing, need: int, answer: Answer) -> None:
        self.writing, self.need, self.answer = writing, need, answer
        self.slot = -1
        self.computed = 0  # tokens whose keys and values the slot holds
        self.reused = self.drafted = self.accepted = 0
        self.draft: list[int] = []  # guessed for the step that comes
        self.chance = Chance()
        self.submitted = time.perf_counter()
        self.started = self.first = self.last = 0.0
        self.cancelled = False

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen; 1 while the text is being written, more in the prompt."""
        return len(self.writing.ids) - self.computed

    def outcome(self) -> Outcome:
        writing = self.writing
        return Outcome(
            text=writing.text,
            ids=tuple(writing.ids[writing.prompt :]),
            finish_reason=writing.reason or "cancelled",
            prompt_tokens=writing.prompt,
            reused_tokens=self.reused,
            drafted=self.drafted,
            accepted=self.accepted,
            queue_s=(self.started or time.perf_counter()) - self.submitted,
            ttft_s=self.first - self.submitted if self.first else 0.0,
            decode_s=self.last - self.first,
        )


class Scheduler:
    """Writes many texts at once.

    All methods may be called from any thread. The scheduler owns the slots: nobody else may call them, and `close`
    closes them.

    Args:
        slots: the model.
        tokenizer: the model's.
        eos_ids: ids that end a text.
        options: how texts share the model.
        drafter: what guesses tokens ahead, where options ask for that; None looks them up in the text. Closed with the
            scheduler.

    Example:
        >>> from nanoquant_edge.formats.bundle import Bundle
        >>> from nanoquant_edge.formats.tokenizer import load_tokenizer
        >>> from nanoquant_edge.runtimes import open_slots
        >>> slots = open_slots(Bundle.open("bundle"), threads=1, count=2)
        >>> with Scheduler(slots, load_tokenizer("bundle"), eos_ids=[2]) as scheduler:
        ...     first = scheduler.submit(Request(ids=[1, 5, 7], max_new_tokens=4))
        ...     second = scheduler.submit(Request(ids=[1, 9], max_new_tokens=2))
        ...     second.result().finish_reason, first.result().prompt_tokens
        ('length', 3)
    """

    def __init__(
        self,
        slots: Slots,
        tokenizer: Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        options: SchedulerOptions | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._slots, self._tokenizer = slots, tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._options = options or SchedulerOptions()
        most = slots.count * slots.max_context
        self._shelf = Shelf(slots.count, min(self._options.cache_tokens or most, most))
        self._drafter = drafter or NgramDrafter()
        self._times = StepTimes()
        self._waiting: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._errands: deque[Callable[[], None]] = deque()
        self._counters = Counters()
        self._seconds = 1.0  # what a request has taken lately
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._work, name="nq-edge scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, notify: Callable[[], None] | None = None) -> Answer:
        """Take a request.

        Args:
            request: what is asked for.
            notify: see `Answer`.

        Raises:
            BusyError: the queue is full, or the scheduler is closing.
            NqEdgeError: NQ-PROMPT when the prompt does not fit, or an id is outside of the vocabulary; NQ-OPTION for
                stop strings that are none.
        """
        limit = min(self._slots.max_context, self._shelf.limit)
        ids = np.asarray(request.ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise NqEdgeError("NQ-PROMPT", "the prompt's token ids are not a row of whole numbers.")
        if len(ids) > limit:
            raise NqEdgeError("NQ-PROMPT", f"the prompt has {len(ids)} tokens, the context holds {limit}.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self._slots.vocab_size:
            raise NqEdgeError("NQ-PROMPT", f"a token id is outside the vocabulary of {self._slots.vocab_size}.")
        # The last new token is never stored, hence the one more.
        writing = Writing(request, self._tokenizer, ends=self._eos_ids, most=limit - len(ids) + 1)
        need = min(len(ids) + int(request.max_new_tokens) - 1, limit)
        with self._changed:
            self._refuse_if_busy()
            job = _Job(writing, need, Answer(lambda: self._cancel(job), notify))
            self._counters.requests += 1
            self._counters.prompt_tokens += len(ids)
            self._waiting.append(job)
            self._changed.notify_all()
        return job.answer

    def statistics(self) -> Statistics:
        """What was done so far, and the present state."""
        with self._changed:
            return Statistics(
                counters=replace(self._counters),
                waiting=len(self._waiting),
                active=len(self._active),
                slots=self._slots.count,
                cache_tokens=self._shelf.tokens,
                cache_limit=self._shelf.limit,
                cache_bytes=self._slots.memory.held if not self._ended else 0,
            )

    def save_prefixes(self, path: str | Path) -> int:
        """Write the beginnings that are kept into a file, for `load_prefixes` of the same model.

        Returns:
            Tokens that were written; without any, no file is.

        Raises:
            NqEdgeError: NQ-OUTPUT when it cannot be written; BusyError once the scheduler has ended.
        """

        def save() -> list[Prefix]:
            kept = [(slot, self._shelf.held[slot]) for slot in self._shelf.free if self._shelf.held[slot]]
            return [Prefix(list(ids), self._slots.save(slot, len(ids))) for slot, ids in kept]

        prefixes: list[Prefix] = self._errand(save)
        if prefixes:
            write_prefixes(Path(path), self._slots.form, prefixes)
        return sum(len(prefix.ids) for prefix in prefixes)

    def load_prefixes(self, path: str | Path) -> int:
        """Take beginnings from a file that `save_prefixes` wrote, as many as free slots and `cache_tokens` allow.

        Returns:
            Tokens that were taken.

        Raises:
            NqEdgeError: NQ-PREFIX for a file that is missing, damaged or of another model, NQ-OPTION when its arrays
                are not those of these slots; BusyError once the scheduler has ended.
        """
        memory, spare = self._slots.memory, 1 << 20
        most = self._slots.count * self._slots.max_context * (memory.token + 4) + spare
        prefixes = read_prefixes(Path(path), self._slots.form, most_bytes=most)
        return int(self._errand(lambda: sum(map(self._shelve, prefixes))))

    def _shelve(self, prefix: Prefix) -> int:
        """Put a beginning into an empty slot, if there is one; returns its tokens."""
        empty = [slot for slot in self._shelf.free if not self._shelf.held[slot]]
        ids = prefix.ids
        fits = 0 < len(ids) <= min(self._slots.max_context, self._shelf.limit - self._shelf.tokens)
        if not empty or not fits or not 0 <= min(ids) <= max(ids) < self._slots.vocab_size:
            return 0
        self._slots.load(empty[0], prefix.arrays, len(ids))
        self._shelf.leave(empty[0], ids)
        return len(ids)

    def close(self, drain: bool = False, timeout_s: float | None = None) -> None:
        """Take no more requests, end, and give back the model's memory. May be called twice.

        Args:
            drain: finish what was taken; else it ends as cancelled.
            timeout_s: how long to wait for that; then the rest ends as cancelled. None waits as long as it takes.
        """
        with self._changed:
            self._closing = True
            if not drain:
                self._cancel_all()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._changed:
                self._cancel_all()
                self._changed.notify_all()
            self._thread.join()
        self._drafter.close()
        self._slots.close()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_busy(self) -> None:
        if self._closing or self._ended:
            raise BusyError("the model takes no more requests.", retry_after_s=1.0, closing=True)
        room = self._options.queue + self._slots.count - len(self._active)
        if len(self._waiting) >= room:
            self._counters.refused += 1
            wait = self._seconds * (len(self._waiting) + 1) / self._slots.count
            raise BusyError(f"{len(self._waiting)} requests wait already.", retry_after_s=min(max(wait, 1.0), 60.0))

    def _cancel(self, job: _Job) -> None:
        with self._changed:
            job.cancelled = True
            self._changed.notify_all()

    def _cancel_all(self) -> None:
        for job in (*self._waiting, *self._active):
            job.cancelled = True

    def _work(self) -> None:
        """The computing thread."""
        error: BaseException | None = None
        try:
            while self._prepare():
                self._step()
        except BaseException as failure:  # a fault of this package: nobody may wait for ever
            error = failure
            raise
        finally:
            with self._changed:
                self._ended = True
                left = [*self._active, *self._waiting]
                self._active, self._waiting = [], deque()
            for job in left:
                job.answer.end(None, error or NqEdgeError("NQ-SYSTEM", "the scheduler has ended."))

    def _prepare(self) -> bool:
        """Wait until there is something to compute, and put waiting requests into free slots; false at the end."""
        while True:
            with self._changed:
                self._drop_cancelled()
                self._admit()
                while self._errands:
                    self._errands.popleft()()
                if self._active:
                    return True
                if self._closing and not self._waiting:
                    self._ended = True  # while the lock is held: whoever comes now is refused
                    return False
                self._changed.wait()

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            self._finish(job, job.writing.stop("cancelled"))
        for job in [job for job in self._active if job.cancelled]:
            self._finish(job, job.writing.stop("cancelled"))

    def _admit(self) -> None:
        while self._waiting and self._shelf.has_room(self._waiting[0].need):
            job = self._waiting.popleft()
            place = self._shelf.find(job.writing.ids)
            try:
                self._slots.copy_prefix(place.source, place.slot, place.length)
            except NqEdgeError as error:
                self._empty(place.slot)
                self._fail(job, error)
                continue
            job.slot, job.computed, job.reused = place.slot, place.length, place.length
            job.started = time.perf_counter()
            self._counters.reused_tokens += place.length
            self._shelf.take(place.slot, job.writing.ids[: place.length], job.need)
            for slot in self._shelf.surplus():
                self._counters.evicted_tokens += len(self._shelf.held[slot])
                self._empty(slot)
            self._active.append(job)

    def _empty(self, slot: int) -> None:
        self._slots.truncate(slot, 0)
        self._shelf.leave(slot, ())

    def _step(self) -> None:
        """One call of the model, and what follows from its logits."""
        begin = time.perf_counter()
        rows: list[tuple[_Job, SlotRow]] = []
        try:
            self._guess()
            rows = self._rows()
            results = self._slots.forward([row for _, row in rows])
        except Exception as error:  # of memory or the runtime: the texts of this step are lost, the others are not
            with self._changed:
                for job in [job for job, _ in rows] or list(self._active):
                    self._fail(job, error)
            return
        seconds = time.perf_counter() - begin
        with self._changed:
            self._counters.steps += 1
            self._counters.step_s += seconds
        if all(row.logits == len(row.ids) for _, row in rows):
            self._times.add(len(rows), sum(len(job.draft) for job, _ in rows), seconds)
        for (job, row), logits in zip(rows, results, strict=True):
            self._take(job, row, logits)

    def _guess(self) -> None:
        """Guess tokens for the texts that are being written, as many as pay."""
        writing = [job for job in self._active if job.pending == 1]
        for job in writing:
            job.draft = []
        most = self._options.draft if self._slots.exact else 0
        if not most or not writing:
            return
        share = self._times.share(len(writing))
        asked: list[tuple[_Job, Guess]] = []
        for job in writing:
            room = min(most, job.need - len(job.writing.ids), self._slots.most_tokens // len(writing) - 1)
            count = job.chance.worth(share, room) if room > 0 else 0
            if count:
                asked.append((job, Guess(job.slot, job.writing.ids, count)))
            else:
                job.chance.add(0, 0)
        if asked:
            for (job, _), found in zip(asked, self._drafter.guess([guess for _, guess in asked]), strict=True):
                job.draft = found

    def _rows(self) -> list[tuple[_Job, SlotRow]]:
        """What the step computes: the last token of every text, and pieces of prompts."""
        writing = [job for job in self._active if job.pending == 1]
        reading = [job for job in self._active if job.pending > 1]
        rows = [self._guessed_row(job) for job in writing]
        room = self._slots.most_tokens - sum(len(row.ids) for _, row in rows)
        if writing:
            room = min(room, self._options.chunk)
        # Even shares; what a short prompt leaves goes to the others.
        for number, job in enumerate(sorted(reading, key=lambda job: job.pending)):
            share = min(job.pending, max(1, room // (len(reading) - number)))
            if room < 1:
                break
            rows.append(self._row(job, share))
            room -= share
        return rows

    def _guessed_row(self, job: _Job) -> tuple[_Job, SlotRow]:
        ids = [job.writing.ids[-1], *job.draft]
        return job, SlotRow(job.slot, ids, logits=len(ids))

    def _row(self, job: _Job, count: int) -> tuple[_Job, SlotRow]:
        ids = job.writing.ids[job.computed : job.computed + count]
        return job, SlotRow(job.slot, ids, logits=int(count == job.pending))

    def _take(self, job: _Job, row: SlotRow, logits: np.ndarray) -> None:
        """Let a text choose from its logits."""
        before, draft = job.writing.new, job.draft
        if not row.logits:
            job.computed += len(row.ids)
            return
        try:
            piece = job.writing.take(logits, lambda index, token: token == draft[index])
            # Of the guesses, those that held count as computed; the last token that was chosen never is.
            job.computed += len(row.ids) - len(draft) + len(piece.tokens) - 1
            if draft and len(piece.tokens) <= len(draft):
                self._slots.truncate(job.slot, job.computed)
        except Exception as error:  # of a mask, or logits that are not finite: only this text is lost
            with self._changed:
                self._fail(job, error)
            return
        job.last = time.perf_counter()
        job.first = job.first or job.last
        held = len(piece.tokens) - 1
        if draft:
            job.chance.add(len(draft), held)
            job.drafted, job.accepted, job.draft = job.drafted + len(draft), job.accepted + held, []
        with self._changed:
            self._counters.new_tokens += job.writing.new - before
            self._counters.drafted += len(draft)
            self._counters.accepted += held if draft else 0
            if job.writing.reason is not None:
                self._finish(job, piece)
                return
        job.answer.put(piece)

    def _finish(self, job: _Job, piece: Piece) -> None:
        """Let a text end; its tokens stay in the slot."""
        self._leave(job, keep=self._options.keep_prefixes)
        if job.writing.reason == "cancelled":
            self._counters.cancelled += 1
        else:
            self._counters.finished += 1
            self._seconds += 0.2 * (time.perf_counter() - job.started - self._seconds)
        if piece.text or piece.tokens:
            job.answer.put(piece)
        job.answer.end(job.outcome())

    def _fail(self, job: _Job, error: BaseException) -> None:
        self._leave(job, keep=False)
        self._counters.failed += 1
        job.answer.end(None, error)

    def _leave(self, job: _Job, keep: bool) -> None:
        if job in self._active:
            self._active.remove(job)
            self._shelf.leave(job.slot, job.writing.ids[: job.computed] if keep else ())
            if not keep:
                self._slots.truncate(job.slot, 0)

    def _errand(self, call: Callable[[], Any]) -> Any:
        """Let the computing thread call something between two steps; returns what it returns."""
        done, result = threading.Event(), list[Any]()

        def run() -> None:
            try:
                result.append((call(), None))
            except BaseException as error:
                result.append((None, error))
            done.set()

        with self._changed:
            if self._ended:
                raise BusyError("the model is closed.", retry_after_s=1.0, closing=True)
            self._errands.append(run)
            self._changed.notify_all()
        done.wait()
        value, error = result[0]
        if error is not None:
            raise error
        return value
