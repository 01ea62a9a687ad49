# SPDX-License-Identifier: Apache-2.0
"""A model on a GPU: its weights, its cache, and the one call that appends tokens to any of its sequences.

One token of each of some sequences is a decode step; it and short prompts are captured into a graph when they come up
for the second time, and launched as one from then on. Longer prompts pass in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ..options import OpenOptions
from .binding import CCache
from .cache import CacheForm, PagedCache
from .decoder import WATCHED_ROWS, Decoder
from .device import ALIGNMENT, Device, Graph, Memory
from .inner_values import InnerValues
from .loading import load_weights, staging_bytes
from .model_files import ModelFiles
from .plan import MemoryPlan, Work, plan_work
from .weights import Weights, check_runnable, place_weights
from .workspace import Workspace

__all__ = ["Append", "Engine", "Held", "Piece", "waves"]

#: Tokens that the first pool of pages holds for a sequence.
_START_TOKENS = 512
#: Rows of a chunk that becomes a graph: the layers of a shorter one take less time than launching them one by one. A
#: chunk is padded on the right to the next of these.
_GRAPH_ROWS = (32, 64, 128, 256, 512)
#: Most graphs that are kept; the oldest goes.
_MOST_GRAPHS = 32


@dataclass
class Held:
    """What the cache holds of one sequence.

    Attributes:
        pages: in order.
        length: tokens.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True)
class Append:
    """Tokens for one sequence.

    Attributes:
        held: the sequence.
        ids: int64, at least one.
        picks: places in `ids` that get logits, in order; may be empty.
    """

    held: Held
    ids: NDArray[np.int64]
    picks: NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Part of an `Append` that passes through the blocks at once: ids [begin, end) of the append number `index`."""

    index: int
    begin: int
    end: int

    @property
    def count(self) -> int:
        """Tokens."""
        return self.end - self.begin


class Engine:
    """A model on a GPU.

    Args:
        files: the model.
        options: how it is held.
        index: of the GPU.
        sequences: that the plan of memory counts.

    Attributes:
        config: sizes.
        dtype: of activations.
        context: most tokens of a sequence.
        plan: what it takes of the GPU's memory.

    Raises:
        NqEdgeError: NQ-CUDA or NQ-NATIVE-MISSING for the GPU, NQ-OPTION or NQ-ARCH for what it cannot compute,
            NQ-MEMORY naming what would fit, NQ-CKPT for damaged files.
    """

    def __init__(self, files: ModelFiles, options: OpenOptions, *, index: int = 0, sequences: int = 1) -> None:
        self.config, self.options = files.config, options
        self.dtype = options.dtype or "float16"
        self.device = Device(index)
        try:
            check_runnable(files, self.dtype, self.device.description.compute_capability)
            self._open(files, options, sequences)
        except BaseException:
            self.device.close()
            raise

    def _open(self, files: ModelFiles, options: OpenOptions, sequences: int) -> None:
        device, config = self.device, self.config
        form = CacheForm.of(config, options.cache_bits)
        placing = place_weights(files, options.table)
        # Sizes do not depend on addresses: a decoder over weights that are nowhere yet tells them.
        nowhere = Weights(files, placing, memory=Memory(device, ALIGNMENT, 0), dtype=self.dtype, table=options.table)
        limit = config.max_positions
        trial = Decoder(device, nowhere, limit)
        asked = min(limit, options.max_context or limit)
        work = plan_work(trial, form, sequences=sequences, stride=form.pages(asked))
        loading = staging_bytes(files)
        self.plan = MemoryPlan(placing.size, loading, work.size, form, limit, sequences)
        self.context = self.plan.context(options.max_context, device.memory()[0])
        self._weights = load_weights(device, files, placing=placing, dtype=self.dtype, table=options.table)
        self.decoder = Decoder(device, self._weights, self.context)
        self.cache = PagedCache(device, form)
        self.workspace = Workspace(device, self.decoder, self._work(sequences))
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._described: tuple[int, list[CCache]] = (-1, [])
        self._pages_sent: list[list[int]] = []

    def _work(self, sequences: int) -> Work:
        form = self.plan.form
        return plan_work(self.decoder, form, sequences=sequences, stride=form.pages(self.context))

    @property
    def capacity(self) -> int:
        """Tokens for which cache memory is held, of all sequences together."""
        return self.cache.pages * self.plan.form.page_tokens

    @property
    def stride(self) -> int:
        """Pages of a sequence at most, at present: a power of two, or as many as the longest context needs."""
        return min(self._stride, self.plan.form.pages(self.context))

    _stride = 1

    def hold(self, sequences: int) -> None:
        """Have work memory for so many sequences at once."""
        if sequences <= self.workspace.work.sequences:
            return
        self.drop_graphs()
        work = self._work(sequences)
        self.workspace.close()
        self.workspace = Workspace(self.device, self.decoder, work)
        self._pages_sent = []

    def reserve(self, appends: Sequence[tuple[Held, int]]) -> None:
        """Have pages for sequences that shall hold so many tokens each, and let them hold these pages.

        Raises:
            NqEdgeError: NQ-MEMORY; nothing has changed then but that the pool may be larger.
        """
        cache = self.cache
        wanted = sum(cache.needs(held.pages, held.length, total) for held, total in appends)
        lacking = wanted - cache.free
        if lacking > 0:
            form = self.plan.form
            start = form.pages(_START_TOKENS) * len(appends)
            least = cache.pages + lacking
            try:
                cache.grow(max(least, 2 * cache.pages, start))
            except NqEdgeError:
                cache.grow(least)
        for held, total in appends:
            cache.extend(held.pages, held.length, total)
            while self._stride < len(held.pages):
                self._stride *= 2

    def append(self, appends: Sequence[Append], inner: InnerValues | None = None) -> list[NDArray[np.float32]]:
        """Append tokens to sequences and compute logits.

        Args:
            appends: of different sequences, whose lengths the call advances.
            inner: collects inner values, where they are wanted.

        Returns:
            For each: float32 [picks, vocab_size].
        """
        self.device.use()
        self.hold(len(appends))
        self.reserve([(append.held, append.held.length + len(append.ids)) for append in appends])
        results = [np.empty((len(append.picks), self.config.vocab_size), np.float32) for append in appends]
        room = self.workspace.work.rows if inner is None else min(WATCHED_ROWS, self.workspace.work.rows)
        for pieces in waves([len(append.ids) for append in appends], room):
            self._pass(appends, pieces, results, inner)
            for piece in pieces:
                appends[piece.index].held.length += piece.count
        return results

    def _pass(
        self,
        appends: Sequence[Append],
        pieces: list[Piece],
        results: list[NDArray[np.float32]],
        inner: InnerValues | None,
    ) -> None:
        """One pass through the blocks, and logits of what is picked in it."""
        tokens = np.concatenate([appends[piece.index].ids[piece.begin : piece.end] for piece in pieces])
        held = [appends[piece.index].held for piece in pieces]
        counts = [piece.count for piece in pieces]
        if len(tokens) == len(pieces) and inner is None:
            self.send(held, tokens, counts=counts)
            self.replayed(("step", len(pieces)), lambda: self.step(len(pieces)))
            picked = [(place, piece) for place, piece in enumerate(pieces) if len(appends[piece.index].picks)]
            if picked:
                logits = self.workspace.fetch_logits(picked[-1][0] + 1)
                for place, piece in picked:
                    results[piece.index][:] = logits[place]
            return
        self.chunk(held, tokens, counts=counts, inner=inner)
        if inner is not None:
            inner.end(pieces)
        self._pick(appends, pieces, results)

    def chunk(
        self,
        held: Sequence[Held],
        tokens: NDArray[np.int64],
        *,
        counts: list[int],
        inner: InnerValues | None = None,
    ) -> None:
        """Pass tokens of several sequences through the blocks.

        Args:
            held: the sequences.
            tokens: int64, those of the first sequence, then those of the second, and so on.
            counts: tokens of each.
            inner: collects inner values.
        """
        rows, lanes = len(tokens), len(held)
        graph_rows = next((size for size in _GRAPH_ROWS if rows <= size <= self.workspace.work.rows), None)
        self.send(held, tokens, counts=counts, ragged=True, rows=rows if inner is not None else graph_rows or rows)
        if inner is not None:
            inner.begin(self.device, self.workspace, rows)
            self._blocks(rows, lanes, inner)
        elif graph_rows is None:
            self._blocks(rows, lanes)
        else:
            size = graph_rows
            self.replayed(("chunk", size, lanes), lambda: self._blocks(size, lanes))

    def _blocks(self, rows: int, lanes: int, inner: InnerValues | None = None) -> None:
        work = self.workspace
        self.decoder.run(
            rows,
            work.lanes(lanes, self.stride, ragged=True),
            buffers=work.buffers,
            caches=self.caches,
            tokens=rows,
            watch=None if inner is None else inner.watch,
        )

    def step(self, lanes: int) -> None:
        """Enqueue one token of each of the first lanes, up to the logits."""
        work = self.workspace
        where = work.lanes(lanes, self.stride, ragged=False)
        self.decoder.run(lanes, where, buffers=work.buffers, caches=self.caches, tokens=1)
        self.decoder.head(lanes, work.buffers, logits=work.address("logits"))

    def _pick(self, appends: Sequence[Append], pieces: list[Piece], results: list[NDArray[np.float32]]) -> None:
        """Logits of the picks that lie in these pieces."""
        ends, places, row = [], [], 0
        for piece in pieces:
            picks = appends[piece.index].picks
            for place in range(*np.searchsorted(picks, [piece.begin, piece.end])):
                ends.append(row + int(picks[place]) - piece.begin + 1)
                places.append((piece.index, place))
            row += piece.count
        most = self.workspace.work.logit_rows
        for first in range(0, len(ends), most):
            part = places[first : first + most]
            logits = self.logits(ends[first : first + most])
            for source, (index, place) in enumerate(part):
                results[index][place] = logits[source]

    def logits(self, ends: list[int]) -> NDArray[np.float32]:
        """Logits of some rows of the last pass, each given as the row and one more; valid until the next call."""
        work = self.workspace
        self.device.synchronize()  # what was sent before may not have been read yet
        work.host["ends"][: len(ends)] = ends
        work.send("ends", "ends", len(ends))
        self.decoder.head(len(ends), work.buffers, logits=work.address("logits"), ends=work.address("ends"))
        return work.fetch_logits(len(ends))

    def send(
        self,
        held: Sequence[Held],
        tokens: NDArray[np.int64],
        *,
        counts: list[int],
        ragged: bool = False,
        rows: int | None = None,
    ) -> None:
        """Enqueue the inputs of a pass: tokens (padded to `rows`), positions, starts and page tables."""
        work, rows = self.workspace, rows or len(tokens)
        self.device.synchronize()  # the copies of the call before this one have been read
        host = work.host
        host["positions"][: len(held)] = [sequence.length for sequence in held]
        host["tokens"][: len(tokens)] = tokens
        host["tokens"][len(tokens) : rows] = 0
        if ragged:
            host["starts"][: len(held) + 1] = np.cumsum([0, *counts])
        work.send("positions", "tokens", rows)
        self.send_pages(held)

    def send_pages(self, held: Sequence[Held]) -> None:
        """Enqueue the page tables of some sequences, where they are not there already."""
        wanted = [[self.stride, *sequence.pages] for sequence in held]
        if wanted == self._pages_sent[: len(wanted)]:
            return
        table = self.workspace.host["page_table"][: len(held) * self.stride].reshape(len(held), self.stride)
        table[:] = 0
        for row, sequence in zip(table, held, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        self.workspace.send("page_table", "page_table", table.size)
        self._pages_sent = wanted

    @property
    def caches(self) -> list[CCache]:
        """The structure of each block's cache."""
        if self._described[0] != self.cache.generation:
            self._described = (self.cache.generation, self.cache.describe())
        return self._described[1]

    def replayed(self, key: tuple[object, ...], enqueue: Callable[[], None]) -> None:
        """Do what `enqueue` enqueues: itself at first, from the second time on as a graph.

        Args:
            key: equal for equal calls; addresses and table sizes are counted in here.
            enqueue: the calls.
        """
        key = (*key, self.stride, self.cache.generation)
        graph = self._graphs.get(key)
        if graph is None:
            if key not in self._seen:
                self._seen.add(key)
                enqueue()
                return
            if len(self._graphs) >= _MOST_GRAPHS:
                self.device.synchronize()
                self._graphs.pop(next(iter(self._graphs))).free()
            with self.device.capturing() as found:
                enqueue()
            graph = self._graphs[key] = found[0]
        graph.launch()

    def drop_graphs(self) -> None:
        """Forget all graphs."""
        self.device.synchronize()
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()
        self._seen.clear()

    def release(self, held: Held, length: int = 0) -> None:
        """Let a sequence hold its first `length` tokens only."""
        self.cache.release(held.pages, length)
        held.length = length

    def close(self) -> None:
        """Give back everything."""
        self.device.use()
        self.drop_graphs()
        self.device.close()


def waves(lengths: list[int], room: int) -> list[list[Piece]]:
    """Sequences cut into passes of at most `room` tokens, in order.

    Example:
        >>> [[(p.index, p.begin, p.end) for p in wave] for wave in waves([3, 2], 4)]
        [[(0, 0, 3), (1, 0, 1)], [(1, 1, 2)]]
    """
    waves: list[list[Piece]] = [[]]
    left = room
    for index, length in enumerate(lengths):
        begin = 0
        while begin < length:
            if left == 0:
                waves.append([])
                left = room
            end = min(length, begin + left)
            waves[-1].append(Piece(index, begin, end))
            left -= end - begin
            begin = end
    return waves
