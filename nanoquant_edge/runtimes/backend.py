# SPDX-License-Identifier: Apache-2.0
"""What a backend is: a model with a key/value cache that turns token ids into logits, numpy in and numpy out.

`Backend` is the promise, `SerialBackend` the part of it that does not depend on what computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import NqEdgeError
from .inputs import check_inputs
from .sampling import SamplingConfig
from .serial import Serial

__all__ = ["Backend", "SerialBackend", "WritingBackend"]


@runtime_checkable
class Backend(Protocol):
    """A loaded model and its cache. One sequence or a batch; calls continue the cache until `reset`.

    Several threads may call it: a call waits for the one before it, `close` too.

    Attributes:
        name: "onnxruntime", "tensorrt" or "cuda".
        kernel: what computes the compressed layers: "nanoquant" (this package's kernels), "portable" (standard
            operators, slow) or "none" (the model has no compressed layer).
        vocab_size: width of the logits.
        max_context: most tokens that the cache may hold for each sequence.
        extra: further outputs of the last `forward` by name, float32 [batch, sequence, ...]; empty unless the backend
            was opened with names of extra outputs.
    """

    name: str
    kernel: str
    vocab_size: int
    max_context: int
    extra: dict[str, np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]; empty after `reset`."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens for which cache memory is held now; grows with use, up to `max_context`."""
        ...

    def forward(
        self, input_ids: np.ndarray, positions: np.ndarray | None = None, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Append tokens to the cache and compute logits.

        Args:
            input_ids: int64 [batch, sequence]; rows shorter than the longest are padded on the right.
            positions: int64 [batch, k], which places of `input_ids` get logits; the last valid one by default.
            lengths: int64 [batch], valid tokens of each row; all by default.

        Returns:
            float32 [batch, k, vocab_size]; the caller's own.

        Raises:
            NqEdgeError: NQ-PROMPT when the tokens do not fit the cache or are not in the vocabulary, NQ-OPTION when the
                shapes contradict each other, the batch size differs from the cache's, or the backend is closed.
        """
        ...

    def reset(self) -> None:
        """Forget all tokens. Memory stays for the next sequence."""
        ...

    def close(self) -> None:
        """Give back all memory, once the call that runs has ended; further calls are refused. May be called twice."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@runtime_checkable
class WritingBackend(Protocol):
    """A backend that can choose the tokens where it computes them, so that no step waits for the host."""

    def chooses(self, sampling: SamplingConfig) -> bool:
        """Whether it can choose tokens so; where not, its logits are to be asked for."""
        ...

    def write(self, ids: np.ndarray, count: int, sampling: SamplingConfig) -> Iterator[int]:
        """Forget everything and continue a prompt.

        Args:
            ids: int64 [tokens], the prompt.
            count: tokens to write; the last one is not taken into the cache.
            sampling: how they are chosen.

        Returns:
            The tokens, each as soon as it is known. An iterator that is not used up is to be closed.

        Raises:
            NqEdgeError: NQ-PROMPT as `Backend.forward`; NQ-OPTION from the iterator once something else was computed,
                NQ-NUMERIC when logits are not finite.
        """
        ...


class SerialBackend(Serial):
    """What all backends do alike: one call at a time, checked arguments, and being closed.

    Args:
        vocab_size, max_context: see `Backend`.
    """

    name: str
    kernel: str

    def __init__(self, vocab_size: int, max_context: int) -> None:
        super().__init__("the backend is closed.")
        self.vocab_size, self.max_context = vocab_size, max_context
        self.extra: dict[str, np.ndarray] = {}

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]; a copy."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Tokens for which cache memory is held."""

    def forward(
        self, input_ids: np.ndarray, positions: np.ndarray | None = None, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Append tokens and compute logits; see `Backend.forward`.

        A batch is prefilled at once and then continues one token at a time; a single sequence may be continued by any
        number of tokens.
        """
        with self._computing():
            arguments = self._checked(input_ids, positions, lengths)
            try:
                return self._forward(*arguments)
            except MemoryError as error:  # of a cache that grows, or of the logits
                raise NqEdgeError("NQ-MEMORY", f"there is too little memory to go on ({error}).") from error

    def reset(self) -> None:
        """Forget all tokens; memory stays."""
        with self._lock:
            self.extra = {}
            if not self._closed:
                self._reset()

    def close(self) -> None:
        """Give back all memory; waits for the call that runs."""
        with self._lock:
            self.extra = {}
            super().close()

    def _checked(
        self, input_ids: np.ndarray, positions: np.ndarray | None, lengths: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return check_inputs(
            input_ids,
            positions,
            lengths=lengths,
            past=self.lengths,
            vocab_size=self.vocab_size,
            max_context=self.max_context,
        )

    @abstractmethod
    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`forward` with arguments that `check_inputs` has completed; the lock is held."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget all tokens; the lock is held."""
