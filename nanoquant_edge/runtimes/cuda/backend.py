# SPDX-License-Identifier: Apache-2.0
"""The backend on a GPU: our kernels, numpy, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import NqEdgeError
from ...formats.checkpoint import Checkpoint
from ..backend import SerialBackend
from ..options import OpenKeywords, OpenOptions
from ..sampling import SamplingConfig
from .device import device_index
from .engine import Append, Engine, Held
from .inner_values import InnerValues
from .model_files import ModelFiles, checkpoint_files
from .number_types import SPELLING
from .token_run import TokenRun, device_chooses

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CudaBackend"]


class CudaBackend(SerialBackend):
    """A model on a GPU; see `Backend` for what its methods promise.

    Args:
        files: the model as it lies on disk.
        options: how it is held: `device`, `dtype`, `table`, `cache_bits` and `max_context`.
        extra_outputs: inner values to return beside the logits, such as "block.0.output".
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: NQ-CUDA or NQ-NATIVE-MISSING for the GPU, NQ-OPTION or NQ-ARCH for what it cannot compute,
            NQ-MEMORY naming what would fit, NQ-CKPT for damaged files.
    """

    name = "cuda"
    kernel = "nanoquant"

    def __init__(
        self,
        files: ModelFiles,
        options: OpenOptions | None = None,
        *,
        extra_outputs: tuple[str, ...] = (),
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        options = replace(options or OpenOptions(), **keywords)
        self._engine: Engine | None = Engine(files, options, index=device_index(options.device))
        super().__init__(files.config.vocab_size, self._engine.context)
        self.dtype = self._engine.dtype
        self._extra_names = tuple(extra_outputs)
        self._held: list[Held] = []
        self._token_run: TokenRun | None = None

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint | str | Path, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
    ) -> CudaBackend:
        """Open a checkpoint's folder as it is; arguments and errors as the class."""
        checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        return cls(checkpoint_files(checkpoint), options, **keywords)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]."""
        return np.array([held.length for held in self._held], np.int64)

    @property
    def capacity(self) -> int:
        """Tokens of each sequence for which cache memory is held."""
        return 0 if self._engine is None else self._engine.capacity // max(1, len(self._held))

    @property
    def device_bytes(self) -> int:
        """Device memory that is held: weights, cache and work."""
        return 0 if self._engine is None else self._engine.device.held

    @property
    def engine(self) -> Engine:
        """What computes.

        Raises:
            NqEdgeError: NQ-OPTION once it is closed.
        """
        if self._engine is None:
            raise NqEdgeError("NQ-OPTION", "the backend is closed.", "Open the bundle or checkpoint again.")
        return self._engine

    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        batch, tokens = input_ids.shape
        self._token_run = None
        engine = self.engine
        held = self._held or [Held() for _ in range(batch)]
        # Places may come in any order and more than once; the engine takes them in order.
        picks = [np.unique(row) for row in positions]
        appends = [Append(held[i], input_ids[i, : lengths[i]], picks[i]) for i in range(batch)]
        inner = None
        if self._extra_names:
            scale = engine.decoder.residual_scale
            kind = SPELLING[self.dtype]
            inner = InnerValues(self._extra_names, kind, shape=(batch, tokens), residual_scale=scale)
        rows = engine.append(appends, inner)
        self._held = held
        self.extra = {} if inner is None else {name: inner.values[name] for name in self._extra_names}
        result = np.empty((batch, positions.shape[1], self.vocab_size), np.float32)
        for i, row in enumerate(positions):
            result[i] = rows[i][np.searchsorted(picks[i], row)]
        return result

    def chooses(self, sampling: SamplingConfig) -> bool:
        """See `WritingBackend.chooses`."""
        return device_chooses(sampling)

    def write(self, ids: np.ndarray, count: int, sampling: SamplingConfig) -> Iterator[int]:
        """Continue a prompt, the tokens chosen on the GPU; see `WritingBackend.write`."""
        begun = self._write(ids, count, sampling)
        next(begun)  # what is wrong with the prompt is said here, not at the first token
        return begun

    def _write(self, ids: np.ndarray, count: int, sampling: SamplingConfig) -> Iterator[int]:
        with self._computing():
            self._reset()
            run = self._run(np.asarray(ids)[None], None, sampling)
            total = len(ids) + count - 1
            if count < 1 or total > self.max_context:
                raise NqEdgeError("NQ-PROMPT", f"{total} tokens do not fit the context of {self.max_context} tokens.")
        yield -1
        for step in range(count):
            with self._computing():
                if self._token_run is not run:
                    raise NqEdgeError("NQ-OPTION", "another text was started.", "Finish one text before the next.")
                if step + 1 < count:
                    run.advance()  # the token after this one is computed while this one is looked at
                token = int(run.receive()[0])
            yield token

    def start(
        self, input_ids: np.ndarray, lengths: np.ndarray | None = None, sampling: SamplingConfig | None = None
    ) -> np.ndarray:
        """Forget everything, read prompts and choose the first new tokens.

        Args:
            input_ids: int64 [batch, sequence], padded on the right.
            lengths: int64 [batch], valid tokens of each row; all by default.
            sampling: how tokens are chosen; None takes the likeliest.

        Returns:
            int64 [batch], the first new tokens, which `extend` continues.

        Raises:
            NqEdgeError: as `forward`.
        """
        with self._computing():
            self._reset()
            return self._run(input_ids, lengths, sampling).receive()

    def extend(self, count: int) -> np.ndarray:
        """Write `count` more tokens of each sequence, without a look at any of them before.

        Returns:
            int64 [batch, count].

        Raises:
            NqEdgeError: NQ-OPTION before `start`, NQ-PROMPT when the tokens do not fit the context.
        """
        with self._computing():
            run = self._started()
            total = int(self.lengths.max()) + count
            if count < 1 or total > self.max_context:
                raise NqEdgeError("NQ-PROMPT", f"{total} tokens do not fit the context of {self.max_context} tokens.")
            return run.extend(count)

    def rewind(self, length: int) -> None:
        """Forget the tokens past the first `length` of each sequence, for `extend` to write them again.

        Raises:
            NqEdgeError: NQ-OPTION before `start` and when a sequence has fewer tokens.
        """
        with self._computing():
            run = self._started()
            if not 0 < length <= int(self.lengths.min()):
                raise NqEdgeError("NQ-OPTION", f"the cache cannot be cut to {length} tokens.")
            run.rewind(length)

    def _started(self) -> TokenRun:
        if self._token_run is None:
            raise NqEdgeError("NQ-OPTION", "there is no prompt to continue.", "Call start first.")
        return self._token_run

    def _run(self, input_ids: np.ndarray, lengths: np.ndarray | None, sampling: SamplingConfig | None) -> TokenRun:
        """Prompts, and a run that continues them."""
        ids, _, counts = self._checked(input_ids, None, lengths)
        held = [Held() for _ in counts]
        prompts = [row[:count] for row, count in zip(ids, counts, strict=True)]
        try:
            self._token_run = TokenRun(self.engine, held, prompts=prompts, sampling=sampling)
        except BaseException:
            for sequence in held:
                self.engine.release(sequence)
            raise
        self._held = held
        return self._token_run

    def _reset(self) -> None:
        self._token_run = None
        for held in self._held:
            self.engine.release(held)
        self._held = []

    def _close(self) -> None:
        self._token_run = None
        engine, self._engine = self._engine, None
        self._held = []
        if engine is not None:
            engine.close()
