# SPDX-License-Identifier: Apache-2.0
"""What any exporter takes: a checkpoint, or a bundle whose weights come out as they went in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.genai import export_genai
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.exporters.options import GraphOptions
from nanoquant_edge.exporters.source import Source
from nanoquant_edge.formats.bundle import MANIFEST_FILE
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "c", tie_word_embeddings=False, mlp_bias=True, mid=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bundle_is_a_weight_source(checkpoint: Checkpoint, tmp_path: Path, dtype: str) -> None:
    export_onnx(checkpoint, tmp_path / "b", dtype=dtype)
    source = Source.open(tmp_path / "b")
    assert source.config == read_config(checkpoint.config) and source.layers == 14
    for name in checkpoint.layers:
        ours, theirs = source.weights.layer(name), checkpoint.layer(name)
        for part in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias"):
            found, expected = getattr(ours, part), getattr(theirs, part)
            assert (found is None) == (expected is None)
            np.testing.assert_array_equal(found, expected)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        np.testing.assert_array_equal(source.weights.tensor(name), checkpoint.tensor(name))
    with pytest.raises(NqEdgeError, match="no tensor absent"):
        source.weights.tensor("absent")
    with pytest.raises(NqEdgeError, match="layer absent is not"):
        source.weights.layer("absent")


def test_a_bundle_of_an_older_version_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "b")
    manifest = tmp_path / "b" / MANIFEST_FILE
    entry = json.loads(manifest.read_text())
    entry["source_model"].pop("config")
    manifest.write_text(json.dumps(entry))
    with pytest.raises(NqEdgeError, match="does not hold the model's configuration") as caught:
        Source.open(tmp_path / "b")
    assert caught.value.code == "NQ-BUNDLE"
    entry["files"].pop("model.onnx")
    manifest.write_text(json.dumps(entry))
    with pytest.raises(NqEdgeError, match=r"holds no model\.onnx"):
        Source.open(tmp_path / "b")


@pytest.mark.parametrize("embedding", ["float16", "int8", "int4"])
def test_a_bundle_exports_again_as_its_checkpoint_does(tmp_path: Path, embedding: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", embedding=embedding, mid=True)
    first = export_onnx(checkpoint, tmp_path / "first")
    assert export_onnx(first.folder, tmp_path / "again").files == first.files
    for number, options in enumerate(({"dialect": "onnx24", "portable": True}, {"dtype": "float16", "max_length": 64})):
        direct = export_onnx(checkpoint, tmp_path / f"direct{number}", **options)
        again = export_onnx(first.folder, tmp_path / f"again{number}", **options)
        assert again.files == direct.files and again.source_model == direct.source_model
        assert again.kv == direct.kv and again.backend_versions == direct.backend_versions


def test_a_bundle_becomes_a_folder_for_genai(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"library")
    options = {"library": tmp_path / "library.so", "max_length": 64}
    bundle = export_onnx(checkpoint, tmp_path / "b")
    direct = export_genai(checkpoint, tmp_path / "g", **options)
    assert export_genai(bundle.folder, tmp_path / "h", **options).files == direct.files


def test_every_manifest_says_the_same_of_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = Source.open(checkpoint)
    onnx = source.bundle(tmp_path, GraphOptions(), backend="onnxruntime", versions=("1.23", ""))
    form = GraphOptions("trt103", "float16", capacity=64)
    engine = source.bundle(tmp_path, form, backend="tensorrt-build", versions=("10.3", ""))
    assert onnx.source_model == {**engine.source_model, "embedding": "float16", "head": "float16"}
    assert engine.source_model["embedding"] == engine.source_model["head"] == "float16"
    assert (onnx.kv.capacity, onnx.kv.in_place) == (256, True) and onnx.compressed_linears == 14
    assert (engine.kv.capacity, engine.kv.dtype, engine.kv.in_place) == (64, "float16", False)


def test_a_tokenizer_is_asked_for_before_anything_is_built(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").unlink()
    with pytest.raises(NqEdgeError, match=r"tokenizer\.json") as caught:
        Source.open(tmp_path / "c")
    assert caught.value.code == "NQ-TOKENIZER"
