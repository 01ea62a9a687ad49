# SPDX-License-Identifier: Apache-2.0
"""A real engine bundle, built here by TensorRT for RTX, through every check up to the GPU that this machine lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import MANIFEST_FILE, REFERENCE_FILE, Bundle
from nanoquant_edge.runtimes import Generator, open_backend
from nanoquant_edge.system.native import TENSORRT_LIBRARY_NAME, tensorrt_library_path
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("tensorrt_rtx")
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if not int(cuda.cudaGetDeviceCount()[0]):
        pytest.skip("this machine has a GPU")
    try:
        tensorrt_library_path()
    except NqEdgeError:
        pytest.skip("the TensorRT plugin is not built")
    from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine

    folder = tmp_path_factory.mktemp("real")
    tiny_checkpoint(folder / "checkpoint")
    options = EngineOptions(capacity=96, batch=2, debug_outputs="blocks")
    return build_engine(folder / "checkpoint", folder / "bundle", target=("sm_86", "sm_89"), options=options)


@pytest.fixture
def copy(real: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(real.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def _refused(folder: Path, code: str, *words: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        open_backend(Bundle.open(folder))
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value), caught.value


def _edit(folder: Path, path: str, value: Any) -> None:
    manifest = folder / MANIFEST_FILE
    entry = field = json.loads(manifest.read_text())
    *parents, last = path.split(".")
    for name in parents:
        field = field[name]
    field[last] = value
    manifest.write_text(json.dumps(entry))


def test_everything_fits_but_the_gpu(real: Bundle) -> None:
    with pytest.raises(NqEdgeError, match="needs an NVIDIA GPU and its driver") as caught:
        Generator.from_bundle(real.folder)
    assert caught.value.code == "NQ-CUDA"


@pytest.mark.parametrize(
    ("path", "value", "code", "words"),
    [
        ("engine.tensorrt_version", "1.6.0.1", "NQ-BACKEND", "built by TensorRT for RTX 1.6.0.1"),
        ("engine.plugin.sha256", "1" * 64, "NQ-PLUGIN", "SHA-256 1111111111111111..."),
        ("engine.plugin.embedded", True, "NQ-TRUST", "--trust-bundle-code"),
        ("operator_version", 9, "NQ-BACKEND", "version 9 of NanoQuantLinear"),
        ("engine.kv.capacity", 64, "NQ-BUNDLE", "contradicts itself"),
        ("engine.flavour", "standard", "NQ-BUNDLE", "contradicts itself"),
    ],
)
def test_a_changed_manifest(path: str, value: Any, code: str, words: str, copy: Path) -> None:
    _edit(copy, path, value)
    _refused(copy, code, words)


def test_the_plugin_is_never_taken_from_the_bundle(copy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copy(tensorrt_library_path(), copy / TENSORRT_LIBRARY_NAME)
    Bundle.open(copy).write()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(tmp_path / "empty"))
    _refused(copy, "NQ-NATIVE-MISSING", str(tmp_path / "empty"))


def test_a_damaged_engine(copy: Path) -> None:
    content = (copy / "model.engine").read_bytes()
    (copy / "model.engine").write_bytes(content[:-1])
    _refused(copy, "NQ-HASH", "the manifest says")
    (copy / "model.engine").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    _refused(copy, "NQ-HASH", "SHA-256")


def test_what_pytorch_computed_travels_from_the_onnx_bundle_to_the_engines(real: Bundle, tmp_path: Path) -> None:
    from nanoquant_edge.exporters.onnx import export_onnx
    from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine

    graph = export_onnx(real.folder.parent / "checkpoint", tmp_path / "graph")
    (graph.folder / REFERENCE_FILE).write_bytes(b"recorded")
    graph.write()
    found = build_engine(graph.folder, tmp_path / "engine", target="sm_86", options=EngineOptions(capacity=96))
    assert (found.folder / REFERENCE_FILE).read_bytes() == b"recorded" and REFERENCE_FILE in found.files
