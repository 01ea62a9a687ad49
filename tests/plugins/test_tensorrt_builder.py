# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin in the registry and the builder of the real TensorRT for RTX, and in the lean runtime's registry.

Engines are built for consumer GPUs on the CPU. Their execution needs such a GPU and is not shown here.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.native import tensorrt_library_info, tensorrt_library_path
from tests.plugins.conftest import Script, call, needs

CREATORS = [["NanoQuantLinear", "1", "com.nanoquant"], ["NanoQuantLinearGroup", "1", "com.nanoquant"]]


@pytest.fixture(scope="module")
def plugin() -> Path:
    try:
        return tensorrt_library_path()
    except NqEdgeError as error:
        pytest.skip(str(error))


@pytest.fixture
def build(script: Script, plugin: Path) -> Any:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")

    def run(**case: Any) -> Any:
        return script("rtx_build", library=str(plugin), NQ_CASE=json.dumps(case))

    return run


@pytest.mark.parametrize("x", ["f16", "bf16"])
@pytest.mark.parametrize("scale", ["f16", "bf16", "f32"])
def test_it_builds_for_three_gpus_at_once(x: str, scale: str, build: Any) -> None:
    found = build(x=x, scale=scale)
    assert found["creators"] == CREATORS
    assert found["plugins"] == ["group", "lone"]
    assert found["shapes"] == [[-1, -1, 72], [-1, -1, 24], [-1, -1, 32]]
    assert found["engine_bytes"] > 0
    assert found["reason"] == ""


def test_it_is_embedded_into_the_engine(build: Any, plugin: Path) -> None:
    alone, with_library = build()["engine_bytes"], build(embed=True)["engine_bytes"]
    assert with_library - alone >= plugin.stat().st_size


def test_odd_sizes_are_built(build: Any) -> None:
    found = build(n=257, ranks=[33, 1, 300, 40], outs=[51, 9, 10, 1])
    assert found["shapes"] == [[-1, -1, 51], [-1, -1, 9], [-1, -1, 10], [-1, -1, 1], [-1, -1, 32]]
    assert found["engine_bytes"] > 0


@pytest.mark.parametrize(
    "case",
    [{"load": False}, {"attributes": {"plugin_version": "2"}}, {"domain": "com.another"}],
    ids=["not loaded", "another version", "another namespace"],
)
def test_a_plugin_that_is_not_there_is_told(case: dict[str, Any], build: Any) -> None:
    found = build(**case)
    assert not found["parsed"]
    assert any("Plugin not found, are the plugin name, version, and namespace correct?" in e for e in found["errors"])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"layout": 0}, "NanoQuantLinearGroup (group): layout is 0, and this plugin reads layout 1"),
        ({"attributes": {"ranks": [40]}}, "has 2 values, and ranks has 1"),
        ({"ranks": [40], "outs": [72]}, "a group has 2 to 4 projections"),
        ({"x": "f32"}, "X is float16 or bfloat16"),
        ({"float_bias": True}, "scales and biases share one of float16, bfloat16, float32"),
        ({"short": True}, "v_packed of projection 0 is 2 x 128, and the attributes need 3 x 128"),
        ({"attributes": {"in_features": 95}}, "of X is 96, and the attributes say 95"),
        ({"attributes": {"out_features": [73, 24]}}, "need"),
    ],
    ids=["layout", "list lengths", "group of one", "float32", "mixed scales", "short words", "width of X", "outputs"],
)
def test_what_the_schema_forbids_builds_no_engine(case: dict[str, Any], reason: str, build: Any) -> None:
    found = build(**case)
    assert not found["parsed"] or found["engine_bytes"] == 0
    assert reason in found["reason"]


def test_what_the_library_exports_and_needs(plugin: Path) -> None:
    needs("nm", "readelf")
    exported = {line.split()[-1] for line in call("nm", "-D", "--defined-only", plugin).splitlines()}
    assert exported == {"getCreators", "setLoggerFinder", "nq_tensorrt_info", "nq_tensorrt_last_error"}
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", call("readelf", "-d", plugin)))
    assert {name for name in needed if not name.startswith("ld-linux")} <= {"libc.so.6"}
    versions = re.findall(r"GLIBC_2\.(\d+)", call("nm", "-D", "--undefined-only", plugin))
    assert max(map(int, versions)) <= 35, "JetPack 6 has GLIBC 2.35"
    info = tensorrt_library_info(plugin)
    assert info["operators"] == ["NanoQuantLinear", "NanoQuantLinearGroup"]
    assert (info["plugin_version"], info["plugin_namespace"]) == ("1", "com.nanoquant")
    assert int(info["headers"].split(".")[0]) >= 10


LEAN = """
import json, sys
import numpy as np
import tensorrt_lean as trt
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None
creator = registry.get_creator("NanoQuantLinear", "1", "com.nanoquant")
kind = trt.PluginFieldType
def create(**values):
    fields = [trt.PluginField(name, np.array([value], np.int32), kind.INT32) for name, value in values.items()]
    return creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)
good = dict(in_features=96, rank=40, out_features=72, has_scale_mid=1, has_bias=0, layout=1)
core = create(**good).get_capability_interface(trt.PluginCapabilityType.CORE)
print(json.dumps([trt.__version__, core is not None, create(**{**good, "layout": 0}) is None]))
"""


def test_the_lean_runtime_takes_it(plugin: Path) -> None:
    if importlib.util.find_spec("tensorrt_lean") is None:
        pytest.skip("the lean runtime is not installed")
    done = subprocess.run([sys.executable, "-c", LEAN, str(plugin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    version, has_core, refused = json.loads(done.stdout)
    assert int(version.split(".")[0]) >= 11
    assert has_core and refused
    assert "layout is 0" in done.stderr
