# SPDX-License-Identifier: Apache-2.0
"""Options are checked when they are made, and say what follows from them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.genai.options import GenaiOptions
from nanoquant_edge.exporters.onnx import build_model, export_onnx
from nanoquant_edge.exporters.onnx.dialects.base import dialect_named
from nanoquant_edge.exporters.options import ExportOptions, GraphOptions
from nanoquant_edge.exporters.tensorrt import EngineOptions
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.formats.graph import DIALECTS
from nanoquant_edge.models.config_reader import read_config
from tests.families import FAMILY_CONFIGS
from tests.tiny import llama_config, tiny_checkpoint


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (GraphOptions, {"dialect": "other"}, "dialect 'other' is not one of ort, onnx24, trt103"),
        (GraphOptions, {"dtype": "float64"}, "dtype 'float64' is not one of"),
        (GraphOptions, {"layout": 2}, "layout 2 is not 0 or 1"),
        (GraphOptions, {"max_length": 0}, "max_length 0"),
        (GraphOptions, {"max_length": "64"}, "max_length '64'"),
        (GraphOptions, {"capacity": True}, "capacity True"),
        (GraphOptions, {"portable": True, "grouped": True}, "a portable graph has layout 0 and no groups"),
        (GraphOptions, {"portable": True, "layout": 1}, "a portable graph has layout 0 and no groups"),
        (ExportOptions, {"dialect": "trt103"}, "dialect trt103 is for TensorRT engines"),
        (ExportOptions, {"embedding": "int2"}, "embedding must be fp16"),
        (ExportOptions, {"embedding": "int8", "dtype": "float16"}, "kept in codes only in float32 graphs"),
        (ExportOptions, {"embedding": "int4", "portable": True}, "kept in codes only in float32 graphs"),
        (GenaiOptions, {"embedding": "int3"}, "embedding must be fp16"),
        (GenaiOptions, {"max_length": -1}, "max_length -1"),
        (EngineOptions, {"dtype": "float32"}, "dtype 'float32' is not float16 or bfloat16"),
    ],
)
def test_a_wrong_value_is_refused_when_options_are_made(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        kind(**values)
    assert caught.value.code == "NQ-OPTION"
    with pytest.raises(FrozenInstanceError):
        kind().dtype = "float32"


def test_a_wrong_option_is_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="dtype 'int8'"):
        export_onnx(tmp_path / "absent", tmp_path / "b", dtype="int8")
    with pytest.raises(TypeError, match="wrong"):
        export_onnx(tmp_path / "absent", tmp_path / "b", wrong=3)


def test_keywords_change_options(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    options = ExportOptions(dtype="float16", max_length=64)
    whole = export_onnx(checkpoint, tmp_path / "a", options)
    assert (whole.dtype, whole.kv.capacity) == ("float16", 64)
    changed = export_onnx(checkpoint, tmp_path / "b", options, max_length=32)
    assert (changed.dtype, changed.kv.capacity) == ("float16", 32)


def test_what_follows_from_the_form_of_a_graph() -> None:
    assert ExportOptions().graph.grouped and ExportOptions().graph.codes and ExportOptions().graph.cpu_kernels
    half = ExportOptions(dtype="float16").graph
    assert not (half.grouped or half.codes or half.cpu_kernels)
    portable = ExportOptions(portable=True).graph
    assert not (portable.grouped or portable.codes or portable.cpu_kernels)
    assert GraphOptions("onnx24").in_place and not GraphOptions("trt103").in_place
    config = read_config(llama_config())
    assert GraphOptions().length(config) == 256 and GraphOptions(max_length=5).length(config) == 5


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_remembers_no_graph(name: str, tmp_path: Path) -> None:
    """A graph in between, of another family and form, leaves no trace in the next one."""
    dialect = dialect_named(name)
    assert dialect is dialect_named(name)
    before = dict(vars(dialect))
    first = tiny_checkpoint(tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "b", **FAMILY_CONFIGS["gemma2"])

    def graph(checkpoint: Checkpoint, **options: Any) -> bytes:
        model = build_model(read_config(checkpoint.config), checkpoint, dialect=name, **options)
        return ir.to_proto(model).graph.SerializeToString()

    alone = graph(first, dtype="float16")
    graph(other, grouped=True)
    assert graph(first, dtype="float16") == alone and vars(dialect) == before


@pytest.mark.parametrize(
    ("family", "dtype", "versions"),
    [
        ("mistral", "float32", ("1.23", "")),
        ("mistral", "float16", ("1.31", "")),
        ("qwen2", "float16", ("1.23", "")),
    ],
)
def test_windows_in_16_bits_ask_for_a_newer_runtime(family: str, dtype: str, versions: tuple[str, str]) -> None:
    config = read_config(FAMILY_CONFIGS[family])
    dialect = dialect_named("ort")
    assert dialect.backend_versions(config, GraphOptions(dtype=dtype)) == versions
    # Shorter than the window, a context has none.
    assert dialect.backend_versions(config, GraphOptions(dtype=dtype, max_length=8)) == ("1.23", "")
