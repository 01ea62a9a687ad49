# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family against PyTorch: every type, tables and caches of every width, chunks and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.formats.checkpoint import CheckpointParts, write_checkpoint
from nanoquant_edge.models import family_of
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files
from nanoquant_edge.validation.dense import dense_model
from tests.families import family_config
from tests.runtimes.cuda.against_pytorch import CONFIGS, LIMITS, TOKENS, Models, logits_of, relative_error
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_pytorch(name: str, dtype: str, made: Models, stand_in: Path) -> None:
    checkpoint, ids, expected = made(name, "float16")
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, 16]
        assert backend.lengths.tolist() == [TOKENS, TOKENS - 4]


@pytest.mark.parametrize("embedding", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_tables_of_8_and_4_bits_and_a_cache_of_8(name: str, embedding: str, made: Models, stand_in: Path) -> None:
    checkpoint, ids, expected = made(name, embedding)
    dtype = "bfloat16" if name == "gemma3" else "float16"
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype, cache_bits=8) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, 8]


@pytest.mark.parametrize("table", ["int8", "int4"])
def test_a_table_is_rounded_while_it_is_loaded(table: str, made: Models, stand_in: Path) -> None:
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


def test_residuals_beyond_float16_fit_by_a_factor(tmp_path: Path, stand_in: Path) -> None:
    made = tiny_checkpoint(tmp_path / "made", seed=3, **CONFIGS["gemma3"])
    layers = {layer: made.layer(layer) for layer in made.layers}
    inside = {tensor for layer in layers for tensor in made.tensor_names() if tensor.startswith(f"{layer}.")}
    others = {tensor: np.asarray(made.tensor(tensor)) for tensor in made.tensor_names() if tensor not in inside}
    table = f"{family_of(made.config).embedding}.weight"
    others[table] = (others[table].astype(np.float32) * 8000).astype(np.float16)
    checkpoint = write_checkpoint(tmp_path / "large", CheckpointParts(made.config, made.settings, layers, others))
    ids = np.random.default_rng(5).integers(0, 320, (1, 9))
    blocks = ("block.0.output", "block.2.output")
    with torch.inference_mode():
        found = dense_model(checkpoint.folder)(torch.from_numpy(ids), output_hidden_states=True)
    expected, states = found.logits.numpy(), found.hidden_states[1].numpy()
    assert np.abs(states).max() > 65504
    with CudaBackend(checkpoint_files(checkpoint), extra_outputs=blocks) as backend:
        assert backend.dtype == "float16"
        logits = backend.forward(ids, positions=np.arange(9)[None])
        assert np.linalg.norm(logits - expected) < LIMITS["float16", 16] * np.linalg.norm(expected)
        error = np.linalg.norm(backend.extra[blocks[0]] - states) / np.linalg.norm(states)
        assert error < LIMITS["float16", 16]
