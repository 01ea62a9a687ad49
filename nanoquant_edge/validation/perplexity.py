# SPDX-License-Identifier: Apache-2.0
"""Perplexity over windows: exp of the mean of the windows' mean next-token losses (docs/METHOD.md, section 3.2).

The tokens are cut into windows side by side and the rest is dropped. Pass only as many tokens as shall be counted:
running perplexity moves from article to article, so figures compare at equal windows only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..system.progress import Progress
from .compare import next_token_loss

if TYPE_CHECKING:
    from ..runtimes import Backend

__all__ = ["backend_perplexity", "chunked_logits", "head_logits", "perplexity", "window_logits"]

#: Bytes of float32 logits held at once.
LOGIT_BYTES = 32 << 20


def _windows(ids: ArrayLike, window: int) -> NDArray[np.int64]:
    flat = np.asarray(ids, np.int64).reshape(-1)
    count = len(flat) // window
    if window < 2 or not count:
        raise ValueError(f"{len(flat)} tokens hold no window of {window}, or the window has no next token")
    return flat[: count * window].reshape(count, window)


def rows_at_once(vocab_size: int, logit_bytes: int = LOGIT_BYTES) -> int:
    """Positions whose float32 logits fit so many bytes."""
    return max(1, logit_bytes // (4 * vocab_size))


def head_logits(model: Any, states: Any) -> Any:
    """Float32 logits (..., vocabulary) of a transformers model from what its head is given (..., hidden)."""
    logits = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def chunked_logits(model: Any, ids: Any, logit_bytes: int = LOGIT_BYTES) -> Iterator[tuple[int, Any]]:
    """Logits of a transformers model a few positions at a time.

    Args:
        model: causal language model.
        ids: int64 tensor (batch, length).
        logit_bytes: float32 logits held at once.

    Yields:
        First position, and float32 logits (batch, positions, vocabulary).
    """
    import torch

    with torch.inference_mode():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        step = max(1, rows_at_once(model.get_output_embeddings().weight.shape[0], logit_bytes) // len(ids))
        for start in range(0, hidden.shape[1], step):
            yield start, head_logits(model, hidden[:, start : start + step])


def perplexity(
    model: Any,
    ids: Any,
    *,
    window: int = 2048,
    batch: int = 1,
    logit_bytes: int = LOGIT_BYTES,
    progress: Progress | None = None,
) -> float:
    """Perplexity of a transformers causal language model.

    Args:
        model: the model; stays on its device and in its type.
        ids: token ids, one-dimensional (a tensor, an array or a list).
        window: tokens a window.
        batch: windows at once.
        logit_bytes: float32 logits held at once.
        progress: told how far it is.

    Raises:
        ValueError: when there is not one whole window.

    Example:
        >>> from nanoquant_edge.models.loading import load_model
        >>> with load_model("model") as source:
        ...     found = perplexity(source.model, [1, 5, 9, 12] * 16, window=32)
        >>> found > 1
        True
    """
    import torch

    cut = torch.from_numpy(_windows(ids.cpu() if hasattr(ids, "cpu") else ids, window)).to(model.device)
    means: list[float] = []
    for start in range(0, len(cut), batch):
        part = cut[start : start + batch]
        losses = torch.zeros(len(part), dtype=torch.float64)
        for first, logits in chunked_logits(model, part, logit_bytes):
            logits = logits[:, : window - 1 - first]
            targets = part[:, first + 1 : first + 1 + logits.shape[1]]
            flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses += flat.view_as(targets).double().sum(1).cpu()
        means += (losses / (window - 1)).tolist()
        if progress is not None:
            progress(len(means) / len(cut), f"perplexity {math.exp(sum(means) / len(means)):.2f}")
    return math.exp(sum(means) / len(means))


def window_logits(
    backend: Backend, ids: NDArray[np.int64], logit_bytes: int = LOGIT_BYTES
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Logits of a bundle on one window, a few positions at a time; the cache is forgotten first.

    Args:
        backend: an open backend.
        ids: int64 (length,).
        logit_bytes: float32 logits held at once.

    Yields:
        First position, and float32 logits (positions, vocabulary).
    """
    backend.reset()
    step = rows_at_once(backend.vocab_size, logit_bytes)
    for start in range(0, len(ids), step):
        piece = ids[None, start : start + step]
        positions = np.arange(piece.shape[1], dtype=np.int64)[None]
        yield start, backend.forward(piece, positions)[0]


def backend_perplexity(
    backend: Backend,
    ids: ArrayLike,
    *,
    window: int = 2048,
    logit_bytes: int = LOGIT_BYTES,
    progress: Progress | None = None,
) -> float:
    """Perplexity of a bundle, as `perplexity` measures it, with the same arguments.

    Raises:
        ValueError: when there is not one whole window.
    """
    cut = _windows(ids, window)
    means: list[float] = []
    for row in cut:
        total = 0.0
        for start, logits in window_logits(backend, row, logit_bytes):
            targets = row[start + 1 : start + 1 + len(logits)]
            total += next_token_loss(logits[: len(targets)], targets)
        means.append(total / (window - 1))
        if progress is not None:
            progress(len(means) / len(cut), f"perplexity {math.exp(sum(means) / len(means)):.2f}")
    return math.exp(sum(means) / len(means))
