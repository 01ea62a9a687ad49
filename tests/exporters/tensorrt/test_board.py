# SPDX-License-Identifier: Apache-2.0
"""Build folders for boards, and the step on the board, with a script in the compiler's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import check_file
from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine
from nanoquant_edge.exporters.tensorrt.plan import PLAN_FILE, BuildPlan
from nanoquant_edge.formats.bundle import Bundle
from tests.exporters.tensorrt.support import NOTHING, needs_builder, scripted
from tests.tiny import tiny_checkpoint

TARGET = "jetson-orin-nano-8gb"
OPTIONS = EngineOptions(capacity=64, refit=True, version_compatible=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board's build folder."""
    root = tmp_path_factory.mktemp("board")
    checkpoint = tiny_checkpoint(root / "c").folder
    bundle = build_engine(checkpoint, root / "b", OPTIONS, target=TARGET, toolchain=NOTHING)
    assert bundle.backend == "tensorrt-build" and bundle.engine is None
    return root / "b"


def test_the_folder_is_complete(folder: Path) -> None:
    bundle = Bundle.open(folder, verify=True)
    names = {"model.onnx", "model.onnx.data", PLAN_FILE, "build.sh", "README.md", "tokenizer.json"}
    assert names <= set(bundle.files) and bundle.dialect == "trt103"
    assert {"plugins/CMakeLists.txt", "plugins/tensorrt/plugin.cpp", "plugins/kernels/nq_cuda.h"} <= set(bundle.files)
    assert check_file(folder / "model.onnx") == 14
    plan = BuildPlan.read(folder)
    assert plan.capabilities == ("8.7",) and plan.flavour == "standard" and not plan.kv.in_place
    assert plan.refit and plan.version_compatible and plan.targets == (TARGET,)
    assert subprocess.run(["sh", "-n", str(folder / "build.sh")]).returncode == 0
    script = (folder / "build.sh").read_text()
    assert f"--target {TARGET}" in script and "-DNQ_CUDA_ARCHITECTURES=87" in script
    assert "{{" not in script and "{target}" not in script
    readme = (folder / "README.md").read_text()
    assert "Jetson Orin Nano 8 GB" in readme and "There is no engine in this folder yet" in readme


def test_the_board_step(folder: Path, tmp_path: Path) -> None:
    toolchain = scripted(tmp_path, "open(request['output'], 'wb').write(b'engine'); send(done)", "standard")
    (tmp_path / "plugin.so").write_bytes(b"plugin")
    library = tmp_path / "plugin.so"
    bundle = build_engine(folder, tmp_path / "e", target="orin-nano", library=library, toolchain=toolchain)
    engine = bundle.engine
    assert engine is not None and bundle.backend == "tensorrt" and bundle.backend_versions == ("10.3.0", "")
    assert engine.flavour == "standard" and engine.tensorrt_version == "10.3.0" and engine.host_code
    assert not engine.kv.in_place and engine.compute_capabilities == ("8.7",)
    assert set(bundle.files) == {"model.engine", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    with pytest.raises(NqEdgeError, match="was prepared for jetson-orin-nano-8gb, not for jetson-agx-thor") as caught:
        build_engine(folder, tmp_path / "f", target="jetson-agx-thor", library=library, toolchain=toolchain)
    assert caught.value.code == "NQ-TARGET"


@needs_builder
def test_the_board_step_with_a_real_builder(tmp_path: Path) -> None:
    """TensorRT for RTX under the name of the standard one: the whole step on the board but for the version.

    It is no proof for TensorRT 10.3; it shows that the graph and the plan are enough, and that `onnx` is not needed.
    """
    checkpoint = tiny_checkpoint(tmp_path / "c").folder
    build_engine(checkpoint, tmp_path / "b", target=TARGET, capacity=64, toolchain=NOTHING)
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from tensorrt_rtx import *\n__version__ = '10.3.0'\n")
    script = (
        "import sys\nsys.modules.update(onnx=None, onnx_ir=None, torch=None)\n"
        "from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine\n"
        f"build_engine('{tmp_path}/b', '{tmp_path}/e', target={TARGET!r})"
    )
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    engine = Bundle.open(tmp_path / "e", verify=True).engine
    assert engine is not None and engine.tensorrt_version == "10.3.0" and engine.compressed_linears == 14
    assert not engine.kv.in_place and engine.flavour == "standard"


def test_without_tensorrt_it_says_where_to_go_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="built on the device") as caught:
        build_engine(folder, tmp_path / "e", target=TARGET, toolchain=NOTHING)
    assert caught.value.code == "NQ-TARGET" and "build.sh" in caught.value.hint


def change(folder: Path, **values: object) -> None:
    entry = json.loads((folder / PLAN_FILE).read_text())
    for name, value in values.items():
        if value is None:
            entry.pop(name)
        else:
            entry[name] = value
    (folder / PLAN_FILE).write_text(json.dumps(entry))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plan_version": 2}, "plan_version"),
        ({"graph": "../model.onnx"}, "graph"),
        ({"graph": 3}, "graph"),
        ({"kv": None}, "kv"),
        ({"extra": 1}, "extra"),
        ({"flavour": "other"}, "flavour"),
        ({"capabilities": [8.7]}, "capabilities"),
        ({"weights": -1}, "weights"),
        ({"refit": "yes"}, "refit"),
        ({"profiles": {"decode": {}}}, "profiles"),
        ({"profiles": {"decode": {}, "prefill": {}}}, "profiles.decode"),
        (
            {"kv": {"layers": 0, "kv_heads": 1, "head_dim": 1, "capacity": 1, "dtype": "float16", "in_place": True}},
            "kv",
        ),
        ({"workspace_mb": -4}, "workspace_mb"),
    ],
)
def test_a_strangers_plan_is_checked(folder: Path, tmp_path: Path, values: dict[str, object], message: str) -> None:
    shutil.copyfile(folder / PLAN_FILE, tmp_path / PLAN_FILE)
    assert BuildPlan.read(tmp_path) == BuildPlan.read(folder)
    change(tmp_path, **values)
    with pytest.raises(NqEdgeError, match=message) as caught:
        BuildPlan.read(tmp_path)
    assert caught.value.code == "NQ-BUNDLE"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "NQ-FIT", "killed, most likely because memory ran out"),
        ("print('terminate called', file=sys.stderr); os.abort()", "NQ-ENGINE", "ended by SIGABRT.*terminate called"),
        ("sys.exit(7)", "NQ-ENGINE", "ended with status 7 and wrote no engine: it said nothing"),
        ("send(done)", "NQ-ENGINE", "wrote no engine"),
        ("print('[1, nonsense'); print('[]'); sys.exit(1)", "NQ-ENGINE", "status 1"),
        (
            "send({'event': 'error', 'code': 'NQ-FIT', 'message': 'too large.', 'hint': 'x'}); sys.exit(3)",
            "NQ-FIT",
            "too",
        ),
    ],
)
def test_what_becomes_of_the_compiler_is_told(folder: Path, tmp_path: Path, body: str, code: str, message: str) -> None:
    toolchain = scripted(tmp_path, body, "standard")
    (tmp_path / "plugin.so").touch()
    with pytest.raises(NqEdgeError, match=message) as caught:
        build_engine(folder, tmp_path / "e", target=TARGET, library=tmp_path / "plugin.so", toolchain=toolchain)
    assert caught.value.code == code and not (tmp_path / "e").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
