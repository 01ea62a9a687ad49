# SPDX-License-Identifier: Apache-2.0
"""Every family in every dialect computes what transformers computes: prompt in pieces, decoding, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, export_onnx
from nanoquant_edge.exporters.onnx.dialects.tensorrt_10_3_operators import check_operators
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.exporters.onnx import test_numerics
from tests.exporters.onnx.dialects.test_tensorrt_10_3 import AppendingDecoder
from tests.exporters.onnx.support import Decoder, have_kernel, reference_logits, reference_model
from tests.families import FAMILY_CONFIGS, family_config
from tests.tiny import tiny_checkpoint

KERNEL = have_kernel()
needs_kernel = pytest.mark.skipif(not KERNEL, reason="the native library is not built")
PIECES = (17, 1, 1, 21)


def close(found: np.ndarray, expected: np.ndarray, dtype: str = "float32") -> None:
    """A soft cap makes the largest logit small, so that the same errors count for more."""
    test_numerics.close(found, expected, dtype, slack=2.0)


@pytest.fixture(scope="module", params=FAMILY_CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Any]:
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp(request.param) / "c", seed=7, **family_config(request.param))
    return checkpoint, reference_model(checkpoint)


@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pieces_and_decoding_equal_transformers(
    made: tuple[Checkpoint, Any], tmp_path: Path, dialect: str, dtype: str
) -> None:
    checkpoint, model = made
    if dtype == "float16" and checkpoint.config["model_type"].startswith("gemma"):
        with pytest.raises(NqEdgeError, match="pass 65504") as caught:
            export_onnx(checkpoint, tmp_path / "b", dialect=dialect, dtype=dtype)
        assert caught.value.code == "NQ-OPTION" and "bfloat16" in caught.value.hint
        return
    bundle = export_onnx(checkpoint, tmp_path / "b", dialect=dialect, dtype=dtype, portable=not KERNEL)
    onnx.checker.check_model(str(bundle.folder / "model.onnx"))
    ids = np.random.default_rng(1).integers(0, 320, (1, sum(PIECES)))
    # In place caches of dialect onnx24 must be finite in free slots.
    decoder = Decoder(bundle, capacity=64, fill=3.0, kernel=KERNEL)
    found, past = [], 0
    for length in PIECES:
        found.append(decoder.feed(ids[:, past : past + length], past))
        past += length
    close(np.concatenate(found, axis=1), reference_logits(model, ids), dtype)


@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
def test_a_batch_of_different_lengths(made: tuple[Checkpoint, Any], tmp_path: Path, dialect: str) -> None:
    checkpoint, model = made
    bundle = export_onnx(checkpoint, tmp_path / "b", dialect=dialect, portable=not KERNEL)
    ids = np.random.default_rng(4).integers(0, 320, (3, 30))
    expected = [reference_logits(model, row[None])[0] for row in ids]
    lengths = np.array([14, 19, 3])
    decoder = Decoder(bundle, batch=3, kernel=KERNEL)
    mask = (np.arange(19)[None] < lengths[:, None]).astype(np.int64)
    logits = decoder(ids[:, :19] * mask, mask, (lengths - 1)[:, None])
    for _ in range(4):
        close(logits[:, 0], np.stack([expected[row][n - 1] for row, n in enumerate(lengths)]))
        lengths = lengths + 1
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        logits = decoder(ids[np.arange(3), lengths - 1][:, None], mask, np.zeros((3, 1), np.int64))


def test_a_portable_graph(made: tuple[Checkpoint, Any], tmp_path: Path) -> None:
    """Without our kernels; float32 windows are masks beside GroupQueryAttention's own."""
    checkpoint, model = made
    bundle = export_onnx(checkpoint, tmp_path / "b", portable=True)
    ids = np.random.default_rng(6).integers(0, 320, (1, 20))
    decoder = Decoder(bundle, kernel=False)
    found = np.concatenate([decoder.feed(ids[:, :19]), decoder.feed(ids[:, 19:], 19)], axis=1)
    close(found, reference_logits(model, ids))


@needs_kernel
def test_the_dialect_of_tensorrt_10_3(made: tuple[Checkpoint, Any], tmp_path: Path) -> None:
    checkpoint, model = made
    ids = np.random.default_rng(1).integers(0, 320, (1, sum(PIECES)))
    decoder = AppendingDecoder(checkpoint, tmp_path)
    found, past = [], 0
    for length in PIECES:
        mask = (np.arange(64)[None] < past + length).astype(np.int64)
        found.append(decoder(ids[:, past : past + length], mask))
        past += length
    close(np.concatenate(found, 1), reference_logits(model, ids))
    onnx.shape_inference.infer_shapes_path(str(tmp_path / "model.onnx"), strict_mode=True, check_type=True)


def test_graphs_for_engines(made: tuple[Checkpoint, Any], tmp_path: Path) -> None:
    config = read_config(made[0].config)
    options: dict[str, Any] = {"capacity": 64, "layout": 1, "grouped": True, "max_length": 64}
    dtype = "float16" if config.structure.float16 else "bfloat16"
    check_operators(build_model(config, made[0], dialect="trt103", dtype=dtype, **options))
    model = build_model(config, made[0], dialect="onnx24", dtype=dtype, **options)
    for node in model.graph:
        assert node.domain in ("", "com.nanoquant")
        assert all(value is not None and value.name for value in node.inputs), node.name
        assert len(node.outputs) == 1 or node.domain, node.name
    write_model(model, tmp_path / "model.onnx")
    assert ir.load(tmp_path / "model.onnx").ir_version == 10


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_context_within_the_window_needs_none(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", **family_config(name))
    config = read_config(checkpoint.config)
    inside = build_model(config, checkpoint, dialect="ort", max_length=config.window)
    outside = build_model(config, checkpoint, dialect="ort", max_length=config.window + 1)
    windows = [
        [node.name for node in model.graph if "local_window_size" in node.attributes] for model in (inside, outside)
    ]
    assert not windows[0] and len(windows[1]) == sum(config.local)


def test_sixteen_bit_windows_ask_for_a_runtime_that_counts_them_right(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", **family_config("mistral"))
    assert export_onnx(checkpoint, tmp_path / "a", dtype="float16").backend_versions == ("1.31", "")
    assert export_onnx(checkpoint, tmp_path / "b").backend_versions == ("1.23", "")
