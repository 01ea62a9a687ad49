# SPDX-License-Identifier: Apache-2.0
"""The TensorRT runtime with graphs of every family, on the imitation: the same tokens as on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.kv_layout import KvLayout
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.runtimes import Generator, open_backend
from tests.families import FAMILY_CONFIGS, family_config
from tests.runtimes.tensorrt.conftest import CAPACITY, engine_info, write_engine_bundle
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_the_same_tokens_as_on_onnx_runtime(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", seed=11, **family_config(name))
    config = read_config(checkpoint.config)
    graph = export_onnx(checkpoint, tmp_path / "graph", dialect="onnx24").folder
    plain = export_onnx(checkpoint, tmp_path / "plain").folder
    info = engine_info(
        kv=KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, "float32", CAPACITY),
        plugin_layers=len(checkpoint.layers),
        compressed_linears=len(checkpoint.layers),
        debug_outputs=(),
    )
    bundle = write_engine_bundle(graph, tmp_path / "engine", info)

    def opener(opened: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
        device = HostDevice()
        return device, OrtEngine(device, opened, graph)

    backend = open_backend(bundle, engine_opener=opener)
    prompt = "The quick brown fox jumps over the lazy dog, numbers 3.14159, naïve façade"
    with (
        Generator.from_bundle(plain, threads=1) as first,
        Generator.from_bundle(bundle.folder, backend=backend) as second,
    ):
        expected = first.generate(prompt, max_new_tokens=24)
        assert len(first.encode(prompt)) > 20, "longer than every window"
        assert second.generate(prompt, max_new_tokens=24).ids == expected.ids
