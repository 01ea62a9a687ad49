# SPDX-License-Identifier: Apache-2.0
"""Two bundles as small as bundles can be: one with a graph, one with an engine; their files are no real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.engine import EngineInfo, PluginInfo, Profile
from nanoquant_edge.formats.kv_layout import KvLayout

__all__ = ["ENGINE", "ENTRY", "engine_bundle", "graph_bundle"]

_MODEL: dict[str, Any] = {
    "portable": False,
    "operator_version": 1,
    "source_model": {"model_type": "llama"},
    "target_bpw": 1.0,
    "true_bpw": 0.98,
    "compressed_linears": 14,
    "vocab_size": 320,
}
ENGINE = EngineInfo(
    file="model.engine",
    tensorrt_version="1.7.1.116",
    flavour="rtx",
    compute_capabilities=("8.6", "8.9", "12.0"),
    plugin=PluginInfo("NanoQuantLinear", "1", "com.nanoquant", "ab" * 32, False),
    precision="float16",
    kv=KvLayout(2, 2, 16, "float16", 96),
    profiles={
        "decode": Profile(0, (1, 1, 4), (1, 1, 1), (1, 1, 1), (96, 96, 96)),
        "prefill": Profile(1, (1, 1, 1), (1, 16, 64), (1, 1, 64), (96, 96, 96)),
    },
    refit=True,
    version_compatible=False,
    plugin_layers=8,
    compressed_linears=14,
    debug_outputs=("block.0.output",),
    timing_cache="timing.cache",
)
ENTRY: dict[str, Any] = json.loads(json.dumps(ENGINE.to_dict()))


def graph_bundle(folder: Path) -> Bundle:
    """A bundle for ONNX Runtime, with a file in a folder inside and one that is not recorded."""
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "sub/data").write_bytes(b"weights")
    (folder / ".hidden").write_bytes(b"not recorded")
    return Bundle(
        folder=folder,
        backend="onnxruntime",
        backend_versions=("1.23", ""),
        dialect="ort",
        dtype="float32",
        kv=KvLayout(2, 2, 16, "float32", 256),
        **_MODEL,
    ).write()


def engine_bundle(folder: Path) -> Bundle:
    """A bundle with an engine of TensorRT for RTX."""
    folder.mkdir()
    (folder / "model.engine").write_bytes(b"engine")
    (folder / "timing.cache").write_bytes(b"times")
    return Bundle(
        folder=folder,
        backend="tensorrt-rtx",
        backend_versions=("1.7.1", ""),
        dialect="onnx24",
        dtype="float16",
        kv=ENGINE.kv,
        engine=ENGINE,
        **_MODEL,
    ).write()
