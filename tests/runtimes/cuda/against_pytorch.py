# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family, what PyTorch computes of them, and how far a backend may be from it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.validation.dense import dense_model
from tests.families import FAMILY_CONFIGS, family_config
from tests.tiny import tiny_checkpoint

__all__ = ["CONFIGS", "LIMITS", "PROMPT", "TOKENS", "Models", "logits_of", "relative_error"]

TOKENS, PROMPT = 23, 17
#: name -> the configuration's changes; heads apart, so that greedy texts are not one token over and over.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    **{name: family_config(name) for name in FAMILY_CONFIGS},
}
#: Relative error of all logits together. Rounding activations to 8 bits of mantissa costs eight times that to 11; codes
#: of 8 bits in the cache cost a percent of what attention adds.
LIMITS = {("float16", 16): 2e-3, ("bfloat16", 16): 1.2e-2, ("float16", 8): 1e-2, ("bfloat16", 8): 1.6e-2}


class Models:
    """Tiny models and PyTorch's logits of them, each made when it is first asked for.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cache  # noqa: B019
    def __call__(self, name: str, embedding: str = "float16") -> tuple[Checkpoint, np.ndarray, np.ndarray]:
        """Checkpoint, token ids and PyTorch's logits [2, tokens, vocabulary] of a family with its tables stored so."""
        mid = name in ("llama", "gemma3")
        path = self._folder / f"{name}-{embedding}"
        checkpoint = tiny_checkpoint(path, seed=3, mid=mid, embedding=embedding, **CONFIGS[name])
        ids = np.random.default_rng(5).integers(0, 320, (2, TOKENS))
        with torch.inference_mode():
            logits = dense_model(checkpoint.folder)(torch.from_numpy(ids)).logits.numpy()
        return checkpoint, ids, logits


def logits_of(backend: CudaBackend, ids: np.ndarray) -> np.ndarray:
    """A ragged prompt of two sequences, then single tokens until both have all of theirs: [2, tokens, vocabulary]."""
    lengths = np.array([PROMPT, PROMPT - 4])
    found = np.zeros((*ids.shape, backend.vocab_size), np.float32)
    everywhere = np.minimum(np.arange(PROMPT), lengths[:, None] - 1)
    prompt = backend.forward(ids[:, :PROMPT], positions=everywhere, lengths=lengths)
    for row, length in enumerate(lengths):
        found[row, :length] = prompt[row, :length]
    for step in range(TOKENS - PROMPT):
        places = lengths + step
        found[[0, 1], places] = backend.forward(ids[[0, 1], places][:, None])[:, 0]
    return found


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Over the tokens that both sequences have."""
    tokens = TOKENS - 4
    found, expected = found[:, :tokens], expected[:, :tokens]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
