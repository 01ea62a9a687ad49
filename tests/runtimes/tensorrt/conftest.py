# SPDX-License-Identifier: Apache-2.0
"""Engine bundles of tiny models, whose "engine" is an ONNX graph beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.engine import EngineInfo, PluginInfo, Profile
from nanoquant_edge.formats.kv_layout import KvLayout
from nanoquant_edge.runtimes.tensorrt import TensorRTBackend
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine
from tests.tiny import tiny_checkpoint

CAPACITY = 96


def engine_info(**changes: Any) -> EngineInfo:
    """The entry of a tiny Llama's engine."""
    total = (1, CAPACITY, CAPACITY)
    info = EngineInfo(
        file="model.engine",
        tensorrt_version="1.7.1.116",
        flavour="rtx",
        compute_capabilities=("8.6", "8.9"),
        plugin=PluginInfo("NanoQuantLinear", "1", "com.nanoquant", "0" * 64, False),
        precision="float32",
        kv=KvLayout(2, 2, 16, "float32", CAPACITY),
        profiles={
            "decode": Profile(0, (1, 1, 4), (1, 1, 1), (1, 1, 1), total),
            "prefill": Profile(1, (1, 1, 1), (1, 16, 16), (1, 1, 4), total),
        },
        refit=True,
        version_compatible=False,
        plugin_layers=14,
        compressed_linears=14,
        debug_outputs=("block.0.output", "block.1.output"),
    )
    return replace(info, **changes)


def write_engine_bundle(source: Path, folder: Path, engine: EngineInfo | None = None, content: bytes = b"x") -> Bundle:
    """An engine bundle with the companions of an ONNX bundle."""
    engine = engine or engine_info()
    graph = Bundle.open(source)
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json" and path.name != "nq_bundle.json":
            shutil.copy(path, folder)
    (folder / engine.file).write_bytes(content)
    return replace(
        graph,
        folder=folder,
        backend={"rtx": "tensorrt-rtx", "standard": "tensorrt"}[engine.flavour],
        backend_versions=("1.7", ""),
        dtype=engine.precision,
        kv=engine.kv,
        compressed_linears=engine.compressed_linears,
        engine=engine,
        files={},
    ).write()


@pytest.fixture(scope="session")
def graph_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph that imitates the engine: standard operators, as TensorRT for RTX gets it."""
    folder = tmp_path_factory.mktemp("engine")
    export_onnx(tiny_checkpoint(folder / "checkpoint"), folder / "graph", dialect="onnx24")
    export_onnx(folder / "checkpoint", folder / "plain")
    return folder / "graph"


@pytest.fixture(scope="session")
def engine_bundle(graph_bundle: Path) -> Bundle:
    return write_engine_bundle(graph_bundle, graph_bundle.parent / "bundle")


@pytest.fixture
def open_imitation(graph_bundle: Path, engine_bundle: Bundle) -> Callable[..., tuple[TensorRTBackend, Any, Any]]:
    """Opens a bundle on the imitation; returns backend, device and engine."""

    def open_it(
        bundle: Bundle | None = None, *, total: int = 1 << 30, graph: Path | None = None, **options: Any
    ) -> tuple[TensorRTBackend, HostDevice, OrtEngine]:
        device = HostDevice(total)
        made: list[OrtEngine] = []

        def opener(opened: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
            made.append(OrtEngine(device, opened, graph or graph_bundle))
            return device, made[0]

        backend = TensorRTBackend(bundle or engine_bundle, opener=opener, **options)
        return backend, device, made[0]

    return open_it
