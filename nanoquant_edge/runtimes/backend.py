# SPDX-License-Identifier: Apache-2.0
"""What a backend is: a model with a key/value cache that turns token ids into logits, numpy in and numpy out."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["Backend"]


@runtime_checkable
class Backend(Protocol):
    """A loaded model and its cache. One sequence or a batch; calls continue the cache until `reset`.

    Attributes:
        name: "onnxruntime", "tensorrt" or "torch".
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
                shapes contradict each other or the batch size differs from the cache's.
        """
        ...

    def reset(self) -> None:
        """Forget all tokens. Memory stays for the next sequence."""
        ...

    def close(self) -> None:
        """Give back all memory; the backend is of no use afterwards. May be called twice."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
