# SPDX-License-Identifier: Apache-2.0
"""Bundles on a GPU: the same logits as the checkpoint's, whatever the graph was made for; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.graph_weights import graph_weights
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.cuda.bundle_files import bundle_files
from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files
from nanoquant_edge.runtimes.options import OpenOptions
from nanoquant_edge.runtimes.target import Target
from tests.families import family_config
from tests.tiny import tiny_checkpoint

#: family, how the checkpoint stores its tables, how it is exported, type on the GPU
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("llama", "float16", {}, "float16"),
    ("llama", "int8", {}, "float16"),
    ("qwen2", "float16", {"dtype": "float16"}, "float16"),
    ("gemma3", "int4", {}, "bfloat16"),
    ("gemma2", "float16", {"dtype": "bfloat16"}, "bfloat16"),
    ("opt", "float16", {}, "float16"),
]


@pytest.mark.parametrize(("name", "embedding", "options", "dtype"), CASES, ids=lambda value: str(value)[:24])
def test_a_bundle_computes_what_its_checkpoint_does(
    name: str, embedding: str, options: dict[str, Any], dtype: str, tmp_path: Path, stand_in: Path
) -> None:
    config = {"tie_word_embeddings": False} if name == "llama" else family_config(name)
    checkpoint = tiny_checkpoint(tmp_path / "c", seed=7, mid=name == "llama", embedding=embedding, **config)
    bundle = export_onnx(checkpoint, tmp_path / "b", **options)
    ids = np.random.default_rng(0).integers(0, 320, (1, 12))
    asked = OpenOptions(device="cuda", dtype=dtype)
    with CudaBackend(checkpoint_files(checkpoint), asked) as one, Target.of(bundle, asked).open(asked) as other:
        expected = one.forward(ids)
        found = other.forward(ids)
    # An export narrows scales, norms and tables to the graph's type.
    limit = {"float16": 2e-3, "bfloat16": 1e-2}.get(options.get("dtype", ""), 1e-6)
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def test_damaged_graphs_are_refused(tiny_bundle: Path, edit_bundle: Any) -> None:
    model = (tiny_bundle / "model.onnx").read_bytes()
    for damaged in (model[:-9], model.replace(b"model.onnx.data", b"model.onnx.dat2"), b"", b"\xff" * 40):
        with pytest.raises(NqEdgeError):
            bundle_files(Bundle.open(edit_bundle(tiny_bundle, files={"model.onnx": damaged}), verify=False))
    data = (tiny_bundle / "model.onnx.data").read_bytes()
    short = edit_bundle(tiny_bundle, files={"model.onnx.data": data[: len(data) // 2]})
    with pytest.raises(NqEdgeError, match="passes the end"):
        bundle_files(Bundle.open(short, verify=False))


def test_offsets_are_those_of_the_data(tiny_bundle: Path) -> None:
    checkpoint = bundle_files(Bundle.open(tiny_bundle))
    found = graph_weights(tiny_bundle / "model.onnx", lambda name: tiny_bundle / name)
    for stored in found.tensors.values():
        with stored.path.open("rb") as file:
            file.seek(stored.offset)
            assert len(file.read(stored.size)) == stored.size
    assert set(checkpoint.layers) == set(found.layers)
