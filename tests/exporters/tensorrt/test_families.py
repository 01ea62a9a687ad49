# SPDX-License-Identifier: Apache-2.0
"""Graphs of every family build with the real TensorRT for RTX and our plugin, in both of TensorRT's dialects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.exporters.onnx import GraphOptions, build_model, export_onnx
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.exporters.source import Source
from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine
from nanoquant_edge.exporters.tensorrt.toolchain import Toolchain
from nanoquant_edge.models.config_reader import read_config
from tests.exporters.tensorrt.support import needs_builder
from tests.families import FAMILY_CONFIGS, ONE_EACH, family_config
from tests.tiny import tiny_checkpoint

TARGET = "sm_86,sm_89,sm_120"


@needs_builder
@pytest.mark.parametrize("dialect", ["onnx24", "trt103"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_an_engine_for_three_architectures(name: str, dialect: str, tmp_path: Path) -> None:
    changes = family_config(name)
    if "layer_types" in changes:  # of three blocks, the third is of the first one's kind
        changes |= {"num_hidden_layers": 2, "layer_types": changes["layer_types"][:2]}
    checkpoint = tiny_checkpoint(tmp_path / "c", **changes)
    config = read_config(checkpoint.config)
    dtype = "bfloat16" if name.startswith("gemma") else "float16"
    options = EngineOptions(capacity=64, prefill=32, dtype=dtype)
    toolchain = Toolchain(dialect=dialect)
    engine = build_engine(checkpoint.folder, tmp_path / "e", target=TARGET, options=options, toolchain=toolchain).engine
    assert engine is not None and engine.compute_capabilities == ("8.6", "8.9", "12.0")
    # One plugin layer for q, k and v, one for gate and up, and the two layers behind them.
    assert engine.plugin_layers == 4 * config.num_layers
    assert engine.compressed_linears == len(config.linear_shapes()) * config.num_layers


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_a_bundle_gives_the_graph_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", **family_config(name))
    export_onnx(checkpoint, tmp_path / "b")
    files = []
    for folder in (checkpoint.folder, tmp_path / "b"):
        source = Source.open(folder)
        form = GraphOptions("trt103", "bfloat16", capacity=64, layout=1, grouped=True)
        model = build_model(source.config, source.weights, form)
        (tmp_path / f"g{len(files)}").mkdir()
        write_model(model, tmp_path / f"g{len(files)}" / "model.onnx")
        files.append([path.read_bytes() for path in sorted((tmp_path / f"g{len(files)}").iterdir())])
    assert files[0] == files[1]


@needs_builder
@pytest.mark.parametrize("heads", [3])
def test_few_heads_are_built_without_a_fused_kernel(heads: int, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", num_attention_heads=heads, num_key_value_heads=1, num_hidden_layers=1)
    options = EngineOptions(capacity=64, prefill=32)
    assert build_engine(checkpoint.folder, tmp_path / "e", target=TARGET, options=options).engine is not None


def build_real_shape(shape: str, folder: Path, **changes: Any) -> tuple[int, int]:
    """Plugin layers and compressed linears of an engine of a real model's sizes with random signs."""
    from benchmarks.engine_build import random_checkpoint

    source = random_checkpoint(shape, 1.0, folder, **changes)
    engine = build_engine(source, folder / "e", target=TARGET, options=EngineOptions(dtype="bfloat16")).engine
    assert engine is not None and engine.compute_capabilities == ("8.6", "8.9", "12.0")
    return engine.plugin_layers, engine.compressed_linears


@needs_builder
def test_real_widths_at_one_bit_with_random_signs(tmp_path: Path) -> None:
    assert build_real_shape("smollm2-135m", tmp_path, num_hidden_layers=2, vocab_size=4096) == (8, 14)


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize(("shape", "blocks"), [("smollm2-135m", 30), ("gemma-3-270m", 18)])
def test_real_shapes_at_one_bit_with_random_signs(shape: str, blocks: int, tmp_path: Path) -> None:
    assert build_real_shape(shape, tmp_path) == (4 * blocks, 7 * blocks)
