# SPDX-License-Identifier: Apache-2.0
"""Exported graphs compute what transformers computes with the same weights, in every way a runtime calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.checkpoint import CheckpointParts, write_checkpoint
from tests.exporters.onnx.support import Decoder, have_kernel, reference_logits, reference_model
from tests.tiny import tiny_checkpoint

KERNEL = have_kernel()
#: Relative to the largest logit.
TOLERANCE = {"float32": 2e-6, "float16": 6e-3}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "multi_head": {"num_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1, "num_hidden_layers": 1},
    "scale_mid": {"mid": True},
    "float32_scales": {"scale_dtype": np.float32, "mid": True, "attention_bias": True},
    "bfloat16_scales": {"scale_dtype": ml_dtypes.bfloat16, "mlp_bias": True},
    "llama3_rope": {"rope_parameters": LLAMA3},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}


def close(found: np.ndarray, expected: np.ndarray, dtype: str = "float32", slack: float = 1.0) -> None:
    assert found.dtype == np.float32 and found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < slack * TOLERANCE[dtype], error


@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tmp_path: Path, variant: str, dialect: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", **VARIANTS[variant])
    bundle = export_onnx(checkpoint, tmp_path / "b", dialect=dialect, portable=not KERNEL)
    ids = np.random.default_rng(1).integers(0, 320, (1, 100))
    expected = reference_logits(reference_model(checkpoint), ids)
    close(Decoder(bundle, capacity=128, kernel=KERNEL).feed(ids), expected)


@pytest.fixture(scope="module", params=[("ort", "float32"), ("onnx24", "float32"), ("ort", "float16")], ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    dialect, dtype = request.param
    folder = tmp_path_factory.mktemp("made")
    checkpoint = tiny_checkpoint(folder / "c", seed=3)
    bundle = export_onnx(checkpoint, folder / "b", dialect=dialect, dtype=dtype, portable=not KERNEL)
    return bundle, reference_model(checkpoint)


def test_prefill_in_pieces_and_decode_equal_one_shot(made: tuple[Any, Any]) -> None:
    bundle, model = made
    ids = np.random.default_rng(2).integers(0, 320, (1, 20))
    expected = reference_logits(model, ids)
    decoder = Decoder(bundle, fill=7.0, kernel=KERNEL)  # what lies in free slots of the cache must not matter
    found, past = [], 0
    for step in (1, 7, 5, 1, 1, 4, 1):
        found.append(decoder.feed(ids[:, past : past + step], past))
        past += step
    close(np.concatenate(found, axis=1), expected, bundle.dtype)


def test_batch_of_different_lengths(made: tuple[Any, Any]) -> None:
    bundle, model = made
    ids = np.random.default_rng(4).integers(0, 320, (3, 20))
    expected = [reference_logits(model, row[None])[0] for row in ids]
    lengths = np.array([4, 9, 1])
    decoder = Decoder(bundle, batch=3, fill=-3.0, kernel=KERNEL)
    columns = np.arange(9)
    mask = (columns[None] < lengths[:, None]).astype(np.int64)
    logits = decoder(ids[:, :9] * mask, mask, (lengths - 1)[:, None])
    for step in range(6):
        close(logits[:, 0], np.stack([expected[row][n - 1] for row, n in enumerate(lengths)]), bundle.dtype)
        lengths = lengths + 1
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        logits = decoder(ids[np.arange(3), lengths - 1][:, None], mask, np.zeros((3, 1), np.int64))
        assert step < 6


def test_logits_come_for_the_chosen_positions_only(made: tuple[Any, Any]) -> None:
    bundle, model = made
    ids = np.random.default_rng(5).integers(0, 320, (1, 9))
    expected = reference_logits(model, ids)
    found = Decoder(bundle, kernel=KERNEL)(ids, np.ones((1, 9), np.int64), np.array([[8, 0, 3, 3, -1]]))
    close(found, expected[:, [8, 0, 3, 3, 8]], bundle.dtype)
    assert Decoder(bundle, kernel=KERNEL)(ids, np.ones((1, 9), np.int64), np.zeros((1, 0), np.int64)).shape == (
        1,
        0,
        320,
    )


def test_the_cache_is_written_in_place(made: tuple[Any, Any]) -> None:
    bundle, _ = made
    decoder = Decoder(bundle, fill=5.0, kernel=KERNEL)
    before = {name: value.data_ptr() for name, value in decoder.cache.items()}
    decoder.feed(np.arange(3, 13)[None])
    for name, value in decoder.cache.items():
        array = value.numpy()
        assert value.data_ptr() == before[name]
        assert not (array[:, :, :10] == 5.0).all(axis=-1).any() and (array[:, :, 10:] == 5.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float32])
def test_tables_and_norms_of_other_types(tmp_path: Path, stored: type, dtype: str) -> None:
    """An embedding in bfloat16 or float32: kept as it is in a float32 graph, converted in a 16-bit one."""
    checkpoint = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
    others = {
        name: checkpoint.tensor(name).astype(stored)
        for name in checkpoint.tensor_names()
        if name.rpartition(".")[0] not in checkpoint.layers
    }
    layers = {name: checkpoint.layer(name) for name in checkpoint.layers}
    settings = checkpoint.settings
    parts = CheckpointParts(checkpoint.config, settings, layers, others)
    changed = write_checkpoint(tmp_path / "d", parts, companions=checkpoint.folder)
    bundle = export_onnx(changed, tmp_path / "b", dtype=dtype, portable=not KERNEL)
    ids = np.random.default_rng(8).integers(0, 320, (1, 12))
    close(Decoder(bundle, kernel=KERNEL).feed(ids), reference_logits(reference_model(changed), ids), dtype)


def test_long_context_uses_the_whole_rotary_table(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", seed=6, num_hidden_layers=1)
    bundle = export_onnx(checkpoint, tmp_path / "b", portable=not KERNEL)
    ids = np.random.default_rng(7).integers(0, 320, (1, 256))
    expected = reference_logits(reference_model(checkpoint), ids)
    close(Decoder(bundle, capacity=256, kernel=KERNEL).feed(ids), expected)
