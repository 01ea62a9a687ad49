# SPDX-License-Identifier: Apache-2.0
"""The graph for TensorRT 10.3: only operators that its parser has, and what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, check_file, export_onnx
from nanoquant_edge.exporters.onnx.dialects.tensorrt_10_3_operators import HIGHEST_OPSET, check_operators
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.exporters.onnx.support import have_kernel, open_session, reference_logits, reference_model
from tests.exporters.onnx.test_numerics import VARIANTS, close
from tests.tiny import tiny_checkpoint

needs_kernel = pytest.mark.skipif(not have_kernel(), reason="the native library is not built")


class AppendingDecoder:
    """Runs the graph and copies new rows into the cache, as a runtime for TensorRT 10.3 does."""

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, batch: int = 1, capacity: int | None = 64, slots: int = 64
    ):
        config = read_config(checkpoint.config)
        model = build_model(config, checkpoint, dialect="trt103", capacity=capacity)
        check_operators(model)
        write_model(model, folder / "model.onnx")
        assert check_file(folder / "model.onnx") == len(config.linear_shapes()) * config.num_layers
        self.session = open_session(folder / "model.onnx")
        shape = (batch, config.num_kv_heads, slots, config.head_dim)
        names = [f"{block}.{part}" for block in range(config.num_layers) for part in ("key", "value")]
        self.cache = {name: np.zeros(shape, np.float32) for name in names}

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        indices = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        feeds = {"input_ids": ids, "attention_mask": mask, "logits_indices": indices}
        feeds.update({f"past_key_values.{name}": value for name, value in self.cache.items()})
        logits, *rows = self.session.run(None, feeds)
        for name, new in zip(self.cache, rows, strict=True):
            assert new.shape[2] == ids.shape[1]
            for row, valid in enumerate(mask.sum(1)):
                start = max(int(valid) - ids.shape[1], 0)
                self.cache[name][row, :, start : start + ids.shape[1]] = new[row]
        return logits


@needs_kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_in_pieces(tmp_path: Path, variant: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", **VARIANTS[variant])
    ids = np.random.default_rng(1).integers(0, 320, (1, 40))
    expected = reference_logits(reference_model(checkpoint), ids)
    decoder = AppendingDecoder(checkpoint, tmp_path)
    found = []
    for begin, end in ((0, 17), (17, 18), (18, 19), (19, 40)):
        mask = np.zeros((1, 64), np.int64)  # as wide as the cache, so that a decode step always has the same shapes
        mask[:, :end] = 1
        found.append(decoder(ids[:, begin:end], mask))
    close(np.concatenate(found, 1), expected)


@needs_kernel
def test_a_padded_batch_and_a_symbolic_capacity(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    model = reference_model(checkpoint)
    ids = np.random.default_rng(2).integers(0, 320, (2, 10))
    lengths = (10, 6)
    decoder = AppendingDecoder(checkpoint, tmp_path, batch=2, capacity=None, slots=16)
    mask = np.stack([np.arange(10) < length for length in lengths]).astype(np.int64)
    prompt = decoder(ids, mask)
    step = np.random.default_rng(3).integers(0, 320, (2, 1))
    mask = np.stack([np.arange(11) < length + 1 for length in lengths]).astype(np.int64)
    after = decoder(step, mask)
    for row, length in enumerate(lengths):
        whole = np.concatenate([ids[row : row + 1, :length], step[row : row + 1]], 1)
        expected = reference_logits(model, whole)
        close(prompt[row : row + 1, :length], expected[:, :length])
        close(after[row : row + 1], expected[:, length:])


def test_float16_runs_and_stays_close(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    model = build_model(read_config(checkpoint.config), checkpoint, dialect="trt103", dtype="float16", capacity=32)
    check_operators(model)
    write_model(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).ir_version <= 10
    if have_kernel():
        session = open_session(tmp_path / "model.onnx")
        ids = np.arange(8)[None]
        cache = {
            value.name: np.zeros((1, *value.shape[1:]), np.float16)
            for value in session.get_inputs()
            if value.name.startswith("past")
        }
        feeds = {"input_ids": ids, "attention_mask": np.ones((1, 8), np.int64), "logits_indices": ids, **cache}
        found = session.run(["logits"], feeds)[0]
        close(found, reference_logits(reference_model(checkpoint), ids), "float16")


def test_nothing_but_listed_operators(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
    config = read_config(checkpoint.config)
    model = build_model(config, checkpoint, dialect="trt103", dtype="float16", capacity=32, layout=1, grouped=True)
    check_operators(model)
    assert model.opset_imports[""] <= HIGHEST_OPSET <= 19
    for other, message in (("onnx24", "opset 24"), ("ort", "opset 18")):
        with pytest.raises(NqEdgeError, match=message):
            check_operators(build_model(config, checkpoint, dialect=other))
    foreign = ir.node("RMSNormalization", [ir.val("x")], name="odd", num_outputs=1)
    model.graph.append(foreign)
    with pytest.raises(NqEdgeError, match="no operator ::RMSNormalization"):
        check_operators(model)


def test_onnxruntime_bundles_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="dialect trt103 is for TensorRT") as caught:
        export_onnx(tiny_checkpoint(tmp_path / "c"), tmp_path / "b", dialect="trt103")
    assert caught.value.code == "NQ-OPTION" and not (tmp_path / "b").exists()


def test_every_shape_is_what_onnx_infers(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    model = build_model(read_config(checkpoint.config), checkpoint, dialect="trt103", capacity=32)
    write_model(model, tmp_path / "model.onnx")
    onnx.shape_inference.infer_shapes_path(str(tmp_path / "model.onnx"), strict_mode=True, check_type=True)
