# SPDX-License-Identifier: Apache-2.0
"""Texts that the device writes by itself: each step's graph ends with the choice of the next token.

No step waits for the host. The host is told the tokens through pinned memory, one step behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ..sampling import SamplingConfig
from .binding import check
from .engine import Engine, Held, waves
from .plan import MAIL_SLOTS
from .table_types import CChoice, CSampling

__all__ = ["TokenRun", "device_chooses"]


def device_chooses(sampling: SamplingConfig) -> bool:
    """Whether the device can choose tokens so: what counts written tokens or biases some is left to the host.

    Example:
        >>> device_chooses(SamplingConfig(temperature=0.7, top_p=0.9))
        True
    """
    return not (sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias)


class TokenRun:
    """Texts of one or more sequences, a token each at a time.

    Args:
        engine: the model.
        held: the sequences, empty.
        prompts: int64 token ids of each.
        sampling: how tokens are chosen; None takes the likeliest.

    Raises:
        NqEdgeError: NQ-MEMORY when the prompts do not fit.
    """

    def __init__(
        self,
        engine: Engine,
        held: Sequence[Held],
        *,
        prompts: Sequence[NDArray[np.int64]],
        sampling: SamplingConfig | None = None,
    ) -> None:
        self._engine, self._held = engine, list(held)
        self._sampling = sampling or SamplingConfig()
        self._plain = self._sampling.greedy and self._sampling.repetition_penalty == 1.0
        engine.device.use()
        engine.hold(len(held))
        engine.reserve([(sequence, len(ids)) for sequence, ids in zip(held, prompts, strict=True)])
        self._sent = self._read = 0
        self._prefill(prompts)
        self._begin(prompts)
        self._post()

    def _prefill(self, prompts: Sequence[NDArray[np.int64]]) -> None:
        """Pass the prompts, and leave the logits of each one's last token in order."""
        engine, done = self._engine, 0
        work = engine.workspace
        for pieces in waves([len(ids) for ids in prompts], work.work.rows):
            tokens = np.concatenate([prompts[piece.index][piece.begin : piece.end] for piece in pieces])
            held, counts = [self._held[piece.index] for piece in pieces], [piece.count for piece in pieces]
            engine.chunk(held, tokens, counts=counts)
            for sequence, count in zip(held, counts, strict=True):
                sequence.length += count
            ends = [
                int(end)
                for end, piece in zip(np.cumsum(counts), pieces, strict=True)
                if piece.end == len(prompts[piece.index])
            ]
            if ends:
                # The copy of the pass before this one was waited for when this pass was sent.
                work.host["ends"][: len(ends)] = ends
                work.send("ends", "ends", len(ends))
                place = work.address("logits") + 4 * done * engine.config.vocab_size
                engine.decoder.head(len(ends), work.buffers, logits=place, ends=work.address("ends"))
                done += len(ends)

    def _begin(self, prompts: Sequence[NDArray[np.int64]]) -> None:
        """Positions and history as the choice expects them, and the first choice."""
        engine, work = self._engine, self._engine.workspace
        if not self._plain:
            self._send_history(prompts)
        engine.device.synchronize()
        # One token is new to the choice, though all of the prompt was to the pass.
        work.host["positions"][: len(prompts)] = [sequence.length - 1 for sequence in self._held]
        work.send("positions", "positions", len(prompts))
        engine.send_pages(self._held)
        self._choose()

    def _send_history(self, prompts: Sequence[NDArray[np.int64]]) -> None:
        engine, work, config = self._engine, self._engine.workspace, self._sampling
        width = self._capacity
        for row, ids in enumerate(prompts):
            engine.device.upload(work.address("history") + 8 * row * width, ids)
        seed = secrets.randbits(64) if config.seed is None else int(config.seed)
        described = (CSampling * len(prompts))(
            *[
                CSampling(
                    temperature=config.temperature,
                    top_k=min(int(config.top_k), (1 << 31) - 1),
                    top_p=config.top_p,
                    min_p=config.min_p,
                    repetition_penalty=config.repetition_penalty,
                    seed=(seed + row) & ((1 << 64) - 1),
                )
                for row in range(len(prompts))
            ]
        )
        data = np.frombuffer(bytes(described), np.uint8)
        engine.device.upload(work.address("sampling"), data)

    @property
    def _capacity(self) -> int:
        """Tokens of a row of the history."""
        work = self._engine.workspace.work
        return (work.stride + 1) * self._engine.plan.form.page_tokens

    def _choose(self) -> None:
        engine, work = self._engine, self._engine.workspace
        described = CChoice(
            sequences=len(self._held),
            vocabulary=engine.config.vocab_size,
            logits=work.address("logits"),
            logits_stride=engine.config.vocab_size,
            tokens=work.address("tokens"),
            history=work.address("history"),
            capacity=self._capacity,
            positions=work.address("positions"),
            sampling=None if self._plain else work.address("sampling"),
            workspace=work.address("choice"),
            workspace_bytes=work.bytes_of("choice"),
        )
        library, stream = engine.device.library, engine.device.stream
        function = library.nq_cuda_choose if self._plain else library.nq_cuda_sample
        check(function(byref(described), stream), "the choice of a token")

    def _post(self) -> None:
        """Enqueue the copy of the last tokens to the host."""
        self._engine.workspace.post(self._sent % MAIL_SLOTS, len(self._held))
        self._sent += 1

    @property
    def waiting(self) -> int:
        """Steps whose tokens were not received yet."""
        return self._sent - self._read

    def receive(self) -> NDArray[np.int64]:
        """The tokens of the oldest step that was not received, int64 [sequences].

        Raises:
            NqEdgeError: NQ-NUMERIC when logits were not finite.
        """
        tokens = self._engine.workspace.received(self._read % MAIL_SLOTS, len(self._held))
        self._read += 1
        if (tokens < 0).any():
            raise NqEdgeError("NQ-NUMERIC", "the model's logits are not finite.", "Try --dtype bfloat16.")
        return tokens

    def advance(self, post: bool = True) -> None:
        """Enqueue one step: every sequence takes its last token in and gets the next one.

        Args:
            post: send the tokens to the host; then no more than one other step may be waiting.
        """
        engine = self._engine
        engine.device.use()
        totals = [(sequence, sequence.length + 1) for sequence in self._held]
        if any(len(sequence.pages) * engine.plan.form.page_tokens < total for sequence, total in totals):
            engine.device.synchronize()
            engine.reserve(totals)
            engine.send_pages(self._held)
        count = len(self._held)
        engine.replayed(("choose" if self._plain else "sample", count), self._step)
        for sequence in self._held:
            sequence.length += 1
        if post:
            self._post()

    def _step(self) -> None:
        self._engine.step(len(self._held))
        self._choose()

    def extend(self, count: int) -> NDArray[np.int64]:
        """`count` more tokens of each sequence, int64 [sequences, count], without a look at any of them before."""
        while self.waiting:
            self.receive()
        begins = [sequence.length for sequence in self._held]
        for _ in range(count):
            self.advance(post=False)
        work, device = self._engine.workspace, self._engine.device
        rows = []
        for row, begin in enumerate(begins):
            place = work.address("history") + 8 * (row * self._capacity + begin + 1)
            rows.append(device.download(place, (count,), np.int64))
        return np.stack(rows)

    def rewind(self, length: int) -> None:
        """Let every sequence hold its first `length` tokens; the last token that was chosen goes on from there."""
        engine, work = self._engine, self._engine.workspace
        while self.waiting:
            self.receive()
        engine.device.synchronize()
        for sequence in self._held:
            sequence.length = length
        work.host["positions"][: len(self._held)] = length
        work.send("positions", "positions", len(self._held))
        engine.device.synchronize()
