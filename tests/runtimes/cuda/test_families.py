# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family against PyTorch: every type, tables and caches of every width, chunks and steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.validation.dense import dense_model
from tests.families import FAMILY_CONFIGS, family_config
from tests.tiny import tiny_checkpoint

TOKENS, PROMPT = 23, 17
#: name -> the configuration's changes; heads apart, so that greedy texts are not one token over and over.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    **{name: family_config(name) for name in FAMILY_CONFIGS},
}
#: Relative error of all logits together. Rounding activations to 8 bits of mantissa costs eight times that to 11; codes
#: of 8 bits in the cache cost a percent of what attention adds.
LIMITS = {("float16", 16): 2e-3, ("bfloat16", 16): 1.2e-2, ("float16", 8): 1e-2, ("bfloat16", 8): 1.6e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, how its tables are stored) -> checkpoint, token ids, PyTorch's logits [2, tokens, vocabulary]."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def make(name: str, embedding: str) -> tuple[Checkpoint, np.ndarray, np.ndarray]:
        mid = name in ("llama", "gemma3")
        path: Path = folder / f"{name}-{embedding}"
        checkpoint = tiny_checkpoint(path, seed=3, mid=mid, embedding=embedding, **CONFIGS[name])
        ids = np.random.default_rng(5).integers(0, 320, (2, TOKENS))
        with torch.inference_mode():
            logits = dense_model(checkpoint.folder)(torch.from_numpy(ids)).logits.numpy()
        return checkpoint, ids, logits

    return make


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_pytorch(name: str, dtype: str, made: Any, stand_in: Path) -> None:
    checkpoint, ids, expected = made(name, "float16")
    if name.startswith("gemma") and dtype == "float16":
        pytest.skip("Gemma's activations pass float16")
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, 16]
        assert backend.lengths.tolist() == [TOKENS, TOKENS - 4]


@pytest.mark.parametrize("embedding", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_tables_of_8_and_4_bits_and_a_cache_of_8(name: str, embedding: str, made: Any, stand_in: Path) -> None:
    checkpoint, ids, expected = made(name, embedding)
    dtype = "bfloat16" if name == "gemma3" else "float16"
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype, cache_bits=8) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, 8]


@pytest.mark.parametrize("table", ["int8", "int4"])
def test_a_table_is_rounded_while_it_is_loaded(table: str, made: Any, stand_in: Path) -> None:
    # The same numbers as those of a checkpoint that was written with rounded tables.
    plain, ids, _ = made("llama", "float16")
    rounded, _, expected = made("llama", table)
    with CudaBackend.from_checkpoint(plain, table=table) as one, CudaBackend.from_checkpoint(rounded) as other:
        found = logits_of(one, ids)
        np.testing.assert_array_equal(found, logits_of(other, ids))
    assert relative_error(found, expected) < LIMITS["float16", 16]


@pytest.mark.parametrize("scales", [np.float32, "bfloat16"], ids=str)
def test_scales_of_other_types_and_float32_tables(scales: Any, tmp_path: Path, stand_in: Path) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if scales == "bfloat16" else scales
    checkpoint = tiny_checkpoint(tmp_path / "c", scale_dtype=kind, **family_config("qwen2"))
    ids = np.random.default_rng(5).integers(0, 320, (2, TOKENS))
    with torch.inference_mode():
        expected = dense_model(checkpoint.folder)(torch.from_numpy(ids)).logits.numpy()
    with CudaBackend.from_checkpoint(checkpoint) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS["float16", 16]
