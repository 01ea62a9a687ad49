# SPDX-License-Identifier: Apache-2.0
"""The backend on TensorRT: two contexts of one engine, a cache that stays on the GPU, decode steps as CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...formats.engine import EngineInfo
from ...formats.graph import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_INDICES, PRESENT, cache_names
from ..backend import SerialBackend
from ..options import OpenKeywords, OpenOptions
from .cache import DeviceCache, aligned
from .device import Device
from .engine import Engine
from .execution import Execution, Shape
from .interface import check_interface
from .loading import open_engine
from .plan import attention_mask, check_batch, decodes, plan_row
from .requirements import build_command, engine_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["UNPROVED", "TensorRTBackend"]

#: What the project has not shown. Said wherever an engine runs or is judged.
UNPROVED = (
    "This project has built TensorRT engines but never executed one on supported hardware: the graph, the plugin and "
    "the runtime were each proved apart. Rely on an engine only after `nq-edge validate` passed on your device."
)

Opener = Callable[..., tuple[Device, Engine]]


class TensorRTBackend(SerialBackend):
    """A bundle's engine; see `Backend` for what its methods promise.

    Args:
        bundle: an opened bundle with an engine.
        options: how it is opened; `max_context` is limited by the engine's key/value capacity.
        extra_outputs: inner values to return beside the logits; the engine must have been built with them.
        graphs: record decode steps into CUDA graphs.
        device_index: which GPU.
        opener: what opens the engine, `open_engine` by default; tests put an imitation in its place.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: as `open_engine`, NQ-BUNDLE when the engine is not the manifest's, NQ-OPTION for a `max_context`
            beyond the engine's or for inner values that it does not return.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        options: OpenOptions | None = None,
        *,
        extra_outputs: tuple[str, ...] = (),
        graphs: bool = True,
        device_index: int = 0,
        opener: Opener = open_engine,
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        options = replace(options or OpenOptions(), **keywords)
        info = engine_of(bundle)
        super().__init__(bundle.vocab_size, _context(info, options))
        _check_outputs(info, extra_outputs)
        self.kernel = "nanoquant" if info.plugin_layers else "none"
        self._info, self._extra_names = info, tuple(extra_outputs)
        self._closers: list[Callable[[], None]] = []
        device, engine = opener(bundle, trusted=options.trust_bundle_code, device_index=device_index)
        self._device, self._engine = device, engine
        self._closers += [device.close, engine.close]
        try:
            check_interface(engine, info, bundle.vocab_size)
            self._cache = DeviceCache(device, info.kv)
            self._closers.append(self._cache.release)
            sizes = [engine.scratch_bytes(info.profiles[title].index) for title in ("decode", "prefill")]
            # The two contexts never run at once, so they share their activations' memory.
            scratch_bytes = aligned(max(*sizes, 1))
            scratch = device.allocate(scratch_bytes)
            self._closers.append(lambda: device.free(scratch))
            self._decode = self._execution("decode", scratch, scratch_bytes, graphs)
            self._prefill = self._execution("prefill", scratch, scratch_bytes, False)
        except BaseException:
            self.close()
            raise

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]."""
        return self._cache.lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens for which cache memory is held: the engine's capacity from the first tokens on."""
        return self._info.kv.capacity if self._cache.batch else 0

    @property
    def graph_refusal(self) -> str:
        """Why decode steps are enqueued one by one although graphs were asked for; "" when they are not."""
        return self._decode.graph_refusal

    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        self._device.use()
        batch, sequence = input_ids.shape
        check_batch(self._info, batch)
        if self._cache.batch != batch:
            # Graphs hold addresses of the cache.
            self._decode.forget_graph()
            self._prefill.forget_graph()
            self._device.synchronize()
            self._cache.reserve(batch)
        past = self._cache.lengths if self._cache.lengths.size else np.zeros(batch, dtype=np.int64)
        self.extra = {}
        if decodes(self._info, batch, sequence):
            logits = np.repeat(self._step(input_ids, past), positions.shape[1], axis=1)
        else:
            logits = np.zeros((batch, positions.shape[1], self.vocab_size), dtype=np.float32)
            for row in range(batch):
                tokens = input_ids[row, : lengths[row]]
                logits[row] = self._prompt(row, tokens, positions[row], int(past[row]), sequence)
        self._cache.lengths = past + lengths
        return logits

    def _reset(self) -> None:
        self._device.use()
        self._cache.clear()

    def _close(self) -> None:
        # Graphs, contexts, cache, engine and the stream, in this order.
        closers, self._closers = self._closers, []
        with contextlib.suppress(NqEdgeError):
            self._device.use()
        for closer in reversed(closers):
            # After an error of CUDA itself nothing can be freed singly; what follows is tried all the same.
            with contextlib.suppress(NqEdgeError):
                closer()

    def _execution(self, title: str, scratch: int, scratch_bytes: int, graphs: bool) -> Execution:
        device, engine = self._device, self._engine
        context = engine.context(
            self._info.profiles[title].index, device.stream, scratch=scratch, scratch_bytes=scratch_bytes
        )
        execution = Execution(device, engine, context=context, graphs=graphs)
        self._closers.append(execution.close)
        return execution

    def _checked(
        self, input_ids: np.ndarray, positions: np.ndarray | None, lengths: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            return super()._checked(input_ids, positions, lengths)
        except NqEdgeError as error:
            if self.max_context < self._info.kv.capacity or "do not fit the context" not in error.message:
                raise
            raise NqEdgeError(
                error.code,
                f"{error.message} The engine's key/value cache has {self._info.kv.capacity} slots.",
                f"Shorten the prompt or the text, or run `{build_command()} --capacity N` with more.",
            ) from error

    def _step(self, input_ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        """One token for each sequence; float32 [batch, 1, vocab_size]."""
        batch, total = len(past), self._info.profiles["decode"].total[2]
        inputs = {
            INPUT_IDS: input_ids,
            ATTENTION_MASK: attention_mask(past + 1, total),
            LOGITS_INDICES: np.zeros((batch, 1), dtype=np.int64),
        }
        caches = dict(self._cache.named())
        shapes = self._output_shapes(batch, 1, 1)
        addresses = self._decode.run(inputs, caches, cache_shape=self._cache_shape(batch), outputs=shapes)
        for row in range(0 if self._info.kv.in_place else batch):
            offset = row * self._info.kv.heads * self._cache.token_bytes
            for name, target in self._cache.named(row):
                self._cache.store(target, addresses[PRESENT + name] + offset, start=int(past[row]), tokens=1)
        for name in self._extra_names:
            self.extra[name] = self._decode.read(name, addresses[name], shapes[name])
        return self._decode.read(LOGITS, addresses[LOGITS], shapes[LOGITS])

    def _prompt(self, row: int, tokens: np.ndarray, positions: np.ndarray, past: int, width: int) -> np.ndarray:
        """The tokens of one row, piece by piece; float32 [k, vocab_size]."""
        logits = np.zeros((len(positions), self.vocab_size), dtype=np.float32)
        caches = dict(self._cache.named(row))
        total = self._info.profiles["prefill"].total[2]
        for piece in plan_row(self._info, len(tokens), positions):
            count = piece.stop - piece.start
            inputs = {
                INPUT_IDS: tokens[None, piece.start : piece.stop],
                ATTENTION_MASK: attention_mask(np.array([past + count]), total),
                LOGITS_INDICES: piece.picks[None],
            }
            shapes = self._output_shapes(1, count, piece.picks.size)
            addresses = self._prefill.run(inputs, caches, cache_shape=self._cache_shape(1), outputs=shapes)
            for name, target in {} if self._info.kv.in_place else caches.items():
                self._cache.store(target, addresses[PRESENT + name], start=past, tokens=count)
            past += count
            if piece.wanted:
                found = self._prefill.read(LOGITS, addresses[LOGITS], shapes[LOGITS])[0]
                inside = (positions >= piece.start) & (positions < piece.stop)
                logits[inside] = found[np.searchsorted(piece.picks, positions[inside] - piece.start)]
            for name in self._extra_names:
                value = self._prefill.read(name, addresses[name], shapes[name])
                batch = self._cache.batch
                whole = self.extra.setdefault(name, np.zeros((batch, width, value.shape[2]), dtype=np.float32))
                whole[row, piece.start : piece.stop] = value[0]
        return logits

    def _cache_shape(self, batch: int) -> Shape:
        kv = self._info.kv
        return (batch, kv.heads, kv.capacity, kv.head_dim)

    def _output_shapes(self, batch: int, sequence: int, positions: int) -> dict[str, Shape]:
        """Shapes of the outputs that have buffers of their own."""
        kv = self._info.kv
        shapes: dict[str, Shape] = {LOGITS: (batch, positions, self.vocab_size)}
        for name in self._info.debug_outputs:
            shapes[name] = (batch, sequence, self._engine.tensors[name].shape[2])
        for name in () if kv.in_place else cache_names(kv.layers):
            shapes[PRESENT + name] = (batch, kv.heads, sequence, kv.head_dim)
        return shapes


def _context(info: EngineInfo, options: OpenOptions) -> int:
    try:
        return options.context(info.kv.capacity, "engine")
    except NqEdgeError as error:
        raise NqEdgeError(error.code, error.message, f"For more run `{build_command()} --capacity N`.") from error


def _check_outputs(info: EngineInfo, extra_outputs: tuple[str, ...]) -> None:
    if missing := sorted(set(extra_outputs) - set(info.debug_outputs)):
        raise NqEdgeError(
            "NQ-OPTION",
            f"the engine does not return {missing[0]!r}.",
            f"Run `{build_command()} --debug-outputs`.",
        )
