# SPDX-License-Identifier: Apache-2.0
"""What a model will take of a GPU's memory, known before anything is allocated: weights, work, and cache.

Work is everything beside weights and cache. How many tokens of a prompt pass through the blocks at once is chosen so
that it stays below `WORK_BYTES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import NqEdgeError
from .binding import CCache
from .cache import CacheForm
from .decoder import Decoder
from .device import aligned

__all__ = ["MAIL_SLOTS", "WORK_BYTES", "MemoryPlan", "Work", "plan_work"]

#: Steps whose chosen tokens may be on their way to the host.
MAIL_SLOTS = 2

#: Most bytes of work for one sequence.
WORK_BYTES = 140_000_000
#: Rows of a prompt that pass through the blocks at once: the most that fits.
_CHUNKS = (2048, 1024, 512, 256, 128, 64, 32)
#: Of float32 logits that are computed at once.
_LOGIT_BYTES = 16 << 20
_LOGIT_ROWS = 128
#: Memory that stays free: the driver loads code and keeps graphs in it.
_MARGIN = 64 << 20


@dataclass(frozen=True)
class Work:
    """Sizes of everything beside weights and cache.

    Attributes:
        sequences: most sequences of a call.
        rows: most new tokens of a call.
        stride: pages of a sequence at most.
        logit_rows: rows of logits that are computed at once, at least one a sequence.
        parts: name -> bytes.
    """

    sequences: int
    rows: int
    stride: int
    logit_rows: int
    parts: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(aligned, self.parts.values()))


def plan_work(decoder: Decoder, form: CacheForm, *, sequences: int, stride: int) -> Work:
    """The work memory of a model; may be asked of a decoder whose weights are not there yet.

    Args:
        decoder: the model.
        form: of its cache.
        sequences: most sequences of a call.
        stride: pages of a sequence at most.
    """
    config = decoder.config
    cache = _described(form, stride)
    logit_rows = max(sequences, 16, min(_LOGIT_ROWS, _LOGIT_BYTES // (4 * config.vocab_size)))
    work = None
    for rows in _CHUNKS:
        if rows < sequences and work is not None:
            break
        rows = max(rows, sequences)
        attention = max(
            decoder.attention_bytes(sequences, 1, cache),
            decoder.attention_bytes(sequences, rows, cache),
        )
        parts = {
            "hidden": 2 * rows * config.hidden_size,
            "spare": 2 * decoder.spare_rows(rows) * config.hidden_size,
            "wide": 2 * rows * decoder.wide_width,
            "scratch": decoder.scratch_bytes(rows),
            "attention": attention,
            "head": decoder.head_bytes(logit_rows),
            "logits": 4 * logit_rows * config.vocab_size,
            "choice": int(decoder.library.nq_cuda_choice_workspace_bytes(sequences, config.vocab_size)),
            "sampling": 64 * sequences,
            "mail": 8 * MAIL_SLOTS * sequences,
            "tokens": 8 * rows,
            "positions": 8 * sequences,
            "starts": 4 * (sequences + 1),
            "ends": 4 * rows,
            "page_table": 4 * sequences * stride,
            # A chosen token has a place there before it has one in the cache, so one page more.
            "history": 8 * sequences * (stride + 1) * form.page_tokens,
        }
        work = Work(sequences, rows, stride, logit_rows, parts)
        if work.size <= WORK_BYTES:
            break
    assert work is not None
    return work


def _described(form: CacheForm, stride: int) -> CCache:
    some = 1 << 20  # an address that is not null; nothing is read
    scales = some if form.bits == 8 else None
    return CCache(
        bits=form.bits,
        page_tokens=form.page_tokens,
        pages=stride,
        keys=some,
        values=some,
        key_scales=scales,
        value_scales=scales,
        page_table=some,
        table_stride=stride,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes.

    Attributes:
        weights: bytes of weights.
        loading: bytes beside them while they are loaded.
        work: bytes beside weights and cache.
        form: of the cache's pages.
        limit: tokens of a sequence that the model allows.
        sequences: sequences that are held at once.

    Example:
        >>> plan = MemoryPlan(weights=10**9, loading=0, work=10**8, form=CacheForm(16, 8, 64), limit=4096, sequences=1)
        >>> plan.bytes(128)
        1104194304
    """

    weights: int
    loading: int
    work: int
    form: CacheForm
    limit: int
    sequences: int

    def bytes(self, context: int) -> int:
        """Everything, with sequences of `context` tokens."""
        cache = self.sequences * self.form.pages(context) * self.form.page
        return max(self.weights + self.loading, self.weights + self.work + cache)

    def fitting(self, free: int) -> int:
        """Tokens of each sequence that fit `free` bytes, no more than the model's limit; 0 where not even a page."""
        room = free - _MARGIN - self.weights - self.work
        pages = max(0, room // (self.form.page * self.sequences))
        return int(min(self.limit, pages * self.form.page_tokens))

    def context(self, wanted: int | None, free: int) -> int:
        """Tokens that a sequence may have.

        Args:
            wanted: what was asked for; None takes what fits.
            free: bytes of device memory.

        Raises:
            NqEdgeError: NQ-OPTION beyond the model's limit, NQ-MEMORY naming what would fit.
        """
        if wanted is not None and wanted > self.limit:
            raise NqEdgeError(
                "NQ-OPTION", f"max_context must be from 1 to the model's {self.limit} tokens, got {wanted}."
            )
        fits = self.fitting(free)
        if fits == 0 or self.weights + self.loading + _MARGIN > free:
            raise NqEdgeError(
                "NQ-MEMORY",
                f"the model needs {self.weights / 1e6:.0f} MB for its weights and {self.work / 1e6:.0f} MB to work in; "
                f"{free / 1e6:.0f} MB of GPU memory are free, too little even for one page of cache.",
                "Close what else uses the GPU, or hold the tables in fewer bits: --table int8 or int4.",
            )
        if wanted is not None and wanted > fits:
            eight = "" if self.form.bits == 8 else ", or halve the cache with --cache-bits 8"
            raise NqEdgeError(
                "NQ-MEMORY",
                f"a context of {wanted} tokens needs {self.bytes(wanted) / 1e6:.0f} MB of GPU memory, "
                f"{free / 1e6:.0f} MB are free: {fits} tokens would fit.",
                f"Pass --max-context {fits}{eight}.",
            )
        return fits if wanted is None else wanted
