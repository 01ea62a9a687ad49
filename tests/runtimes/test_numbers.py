# SPDX-License-Identifier: Apache-2.0
"""Bundles whose numbers go wrong while they run: a coded error, never a text made of NaN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanoquant_edge import Generator
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from tests.tiny import tiny_checkpoint, write_tokenizer

pytest.importorskip("onnxruntime")


def with_final_norm(folder: Path, value: float) -> Path:
    """A tiny checkpoint whose last norm multiplies by `value`."""
    tiny_checkpoint(folder)
    tensors = load_file(folder / "nanoquant.safetensors")
    tensors["model.norm.weight"] = np.full(40, value, np.float32)
    save_file(tensors, folder / "nanoquant.safetensors")
    return folder


def edit_manifest(folder: Path) -> None:
    """Let the manifest state the size of a tokenizer that was exchanged behind its back."""
    manifest = json.loads((folder / "nq_bundle.json").read_text())
    manifest["files"]["tokenizer.json"]["size"] = (folder / "tokenizer.json").stat().st_size
    (folder / "nq_bundle.json").write_text(json.dumps(manifest))


def test_activations_beyond_float16_are_told(tmp_path: Path) -> None:
    export_onnx(with_final_norm(tmp_path / "c", 6e4), tmp_path / "b", dtype="float16")
    with (
        Generator.from_bundle(tmp_path / "b", threads=1) as generator,
        pytest.raises(NqEdgeError, match="logits are not finite") as caught,
    ):
        generator.generate("The quick", max_new_tokens=2)
    assert caught.value.code == "NQ-NUMERIC"


def test_the_same_model_runs_in_float32(tmp_path: Path) -> None:
    export_onnx(with_final_norm(tmp_path / "c", 6e4), tmp_path / "b")
    with Generator.from_bundle(tmp_path / "b", threads=1) as generator:
        assert len(generator.generate("The quick", max_new_tokens=2).ids) > 0


def test_weights_beyond_float16_are_refused_at_export(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError) as caught:
        export_onnx(with_final_norm(tmp_path / "c", 1e6), tmp_path / "b", dtype="float16")
    assert caught.value.code == "NQ-NUMERIC"
    assert not (tmp_path / "b").exists()


def test_weights_that_are_no_numbers_are_refused_at_export(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError) as caught:
        export_onnx(with_final_norm(tmp_path / "c", float("nan")), tmp_path / "b")
    assert caught.value.code == "NQ-NUMERIC"
    assert not (tmp_path / "b").exists()


def test_a_tokenizer_with_more_ids_than_the_vocabulary(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", vocab_size=320)
    export_onnx(tmp_path / "c", tmp_path / "b")
    (tmp_path / "larger").mkdir()
    write_tokenizer(tmp_path / "larger", 600)
    (tmp_path / "b/tokenizer.json").write_bytes((tmp_path / "larger/tokenizer.json").read_bytes())
    edit_manifest(tmp_path / "b")
    Bundle.open(tmp_path / "b", verify=False).write()
    with (
        Generator.from_bundle(tmp_path / "b", threads=1) as generator,
        pytest.raises(NqEdgeError, match="outside the vocabulary of 320") as caught,
    ):
        generator.generate("A model of language predicts the next token from those before it", max_new_tokens=2)
    assert caught.value.code == "NQ-PROMPT"


def test_a_vocabulary_with_more_ids_than_the_tokenizer(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", vocab_size=320)
    write_tokenizer(tmp_path / "c", 300)
    export_onnx(tmp_path / "c", tmp_path / "b")
    with Generator.from_bundle(tmp_path / "b", threads=1) as generator:
        result = generator.generate("The quick", max_new_tokens=24)
    assert isinstance(result.text, str)  # ids without a token add nothing to it
