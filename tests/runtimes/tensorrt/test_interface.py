# SPDX-License-Identifier: Apache-2.0
"""An engine that is not the manifest's is refused before any memory is bound to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.exporters.tensorrt.runner import compiler_environment
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.formats.onnx_outputs import with_extra_outputs
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.runtimes.tensorrt.engine import TensorInfo
from nanoquant_edge.runtimes.tensorrt.interface import check_interface
from nanoquant_edge.system.native import tensorrt_library_path
from tests.runtimes.tensorrt.conftest import CAPACITY, engine_info
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine

KV = "past_key_values.1.value"


@pytest.fixture
def loaded(graph_bundle: Path, engine_bundle: Bundle) -> OrtEngine:
    return OrtEngine(HostDevice(), engine_bundle, graph_bundle)


def _edit(name: str, **changes: Any) -> Callable[[OrtEngine], None]:
    def edit(engine: OrtEngine) -> None:
        engine.tensors[name] = replace(engine.tensors[name], **changes)

    return edit


def _drop(name: str) -> Callable[[OrtEngine], None]:
    return lambda engine: engine.tensors.pop(name) and None


def _add(engine: OrtEngine) -> None:
    engine.tensors["more"] = TensorInfo("more", True, "int64", (1,))


def _profiles(engine: OrtEngine) -> None:
    engine.profiles = 3


def _alias(engine: OrtEngine) -> None:
    engine.alias = lambda name: "past_key_values.0.key"  # type: ignore[method-assign]


def test_the_right_engine_passes(loaded: OrtEngine) -> None:
    check_interface(loaded, engine_info(), 320)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop("attention_mask"), "no tensor attention_mask"),
        (_add, "an unknown tensor more"),
        (_edit(KV, is_input=False), f"{KV} is an output"),
        (_edit(KV, dtype="float16"), f"{KV} is float16, the manifest says float32"),
        (_edit(KV, shape=(-1, 2, 97, 16)), r"shape \[-1, 2, 97, 16\], the manifest says \[-1, 2, 96, 16\]"),
        (_edit(KV, shape=(-1, 2, -1, 16)), "the manifest says"),
        (_edit(KV, shape=(-1, 2, 96)), "the manifest says"),
        (_edit("present.0.key", shape=(-1, 4, 96, 16)), "present.0.key has shape"),
        (_edit("logits", shape=(-1, -1, 321)), "logits has shape"),
        (_edit("logits", dtype="float16"), "logits is float16"),
        (_edit("input_ids", dtype="int32"), "input_ids is int32"),
        (_edit("block.0.output", shape=(-1, 40)), "block.0.output has shape"),
        (_edit("block.0.output", shape=(-1, -1, -1)), "block.0.output has shape"),
        (_profiles, "has 3 optimization profiles, the manifest 2"),
        (_alias, r"present\.0\.value shares the memory of past_key_values\.0\.key"),
    ],
)
def test_other_engines_are_refused(edit: Callable[[OrtEngine], None], message: str, loaded: OrtEngine) -> None:
    edit(loaded)
    with pytest.raises(NqEdgeError, match=message) as caught:
        check_interface(loaded, engine_info(), 320)
    assert caught.value.code == "NQ-BUNDLE" and "nq-edge build" in caught.value.hint


@pytest.mark.parametrize("dimension", ["batch", "sequence", "positions", "total"])
def test_profiles_that_differ_from_the_manifest_are_refused(dimension: str, loaded: OrtEngine) -> None:
    info = engine_info()
    prefill = replace(info.profiles["prefill"], **{dimension: (1, 1, 200)})
    with pytest.raises(NqEdgeError, match="profile prefill has largest shape"):
        check_interface(loaded, replace(info, profiles={**info.profiles, "prefill": prefill}), 320)


def test_a_dimension_that_the_profiles_fix_may_be_fixed_in_the_engine(loaded: OrtEngine) -> None:
    info = engine_info()
    profiles = {name: replace(value, total=(96, 96, 96)) for name, value in info.profiles.items()}
    loaded.info = info = replace(info, profiles=profiles)
    _edit("attention_mask", shape=(-1, 96))(loaded)
    check_interface(loaded, info, 320)


_PARSE = """
import json, sys
import tensorrt_rtx as trt
from nanoquant_edge.system.native import tensorrt_library_path
from nanoquant_edge.runtimes.tensorrt.loading import make_logger, register_plugin
log = []
logger = make_logger(trt, log)
builder = trt.Builder(logger)
register_plugin(trt, str(tensorrt_library_path()), log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(sys.argv[1]), log
ins = [(network.get_input(i), True) for i in range(network.num_inputs)]
outs = [(network.get_output(i), False) for i in range(network.num_outputs)]
assert not any(t.is_shape_tensor for t, _ in ins + outs), "the runtime passes inputs in GPU memory"
print(json.dumps([[t.name, is_input, t.dtype.name, list(t.shape)] for t, is_input in ins + outs]))
"""


@pytest.mark.parametrize(("dialect", "dtype"), [("onnx24", "float16"), ("onnx24", "bfloat16"), ("trt103", "float16")])
def test_networks_that_the_real_parser_makes_have_the_tensors_that_this_runtime_expects(
    dialect: str, dtype: str, graph_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    try:
        tensorrt_library_path()
    except NqEdgeError:
        pytest.skip("the TensorRT plugin is not built")
    checkpoint = Checkpoint(graph_bundle.parent / "checkpoint")
    config = read_config(checkpoint.config)
    model = build_model(config, checkpoint, dialect=dialect, dtype=dtype, capacity=CAPACITY, layout=1, grouped=True)
    write_model(model, tmp_path / "model.onnx")
    names = ("block.0.output", "block.1.output")
    (tmp_path / "more.onnx").write_bytes(with_extra_outputs(tmp_path / "model.onnx", names, dtype))
    with compiler_environment() as environment:
        done = subprocess.run(
            [sys.executable, "-c", _PARSE, str(tmp_path / "more.onnx")],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    kv = replace(engine_info().kv, dtype=dtype, in_place=dialect == "onnx24")
    info = engine_info(precision=dtype, kv=kv)
    types = {"INT64": "int64", "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    tensors = {
        name: TensorInfo(name, is_input, types[kind], tuple(shape))
        for name, is_input, kind, shape in json.loads(done.stdout.splitlines()[-1])
    }
    imitated = SimpleNamespace(tensors=tensors, profiles=2, alias=lambda _name: None, info=info)
    imitated.profile_shape = lambda name, profile: OrtEngine.profile_shape(imitated, name, profile)  # type: ignore[arg-type]
    check_interface(imitated, info, 320)  # type: ignore[arg-type]
