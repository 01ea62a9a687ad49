# SPDX-License-Identifier: Apache-2.0
"""The library under test, and how its scripts are run in a process of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.system.native import ort_library_path

ROOT = Path(__file__).parents[2]
#: Runs a module of this folder on a library: script(name, library=..., python=..., **environment) -> its JSON.
Script = Callable[..., Any]
FLAGS = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}


def lacks(isa: str) -> str | None:
    """Why this processor has no such kernels, or None."""
    arm = platform.machine() in ("aarch64", "arm64")
    if isa == "scalar" or (isa == "neon" and arm):
        return None
    if isa == "neon" or arm:
        return f"{isa} is of another architecture"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    present = set(next(line for line in lines if line.startswith("flags")).split())
    return None if FLAGS[isa] <= present else f"this processor has no {isa}"


def check_grid(result: dict[str, Any], cases: int) -> None:
    """A script's grid has so many cases at least, each within its limit."""
    assert len(result["rows"]) >= cases
    bad = [row for row in result["rows"] if not row["error"] <= row["limit"]]
    assert not bad, bad[:5]


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this processor has."""
    name = str(request.param)
    if reason := lacks(name):
        pytest.skip(reason)
    return name


@pytest.fixture
def lowest_python() -> str:
    """A Python with the lowest supported versions (make test-lowest)."""
    python = os.environ.get("NQ_EDGE_LOWEST_PYTHON")
    if not python:
        pytest.skip("NQ_EDGE_LOWEST_PYTHON names no Python with onnxruntime==1.23.2, onnx and numpy")
    return python


@pytest.fixture(scope="session")
def library() -> str:
    return str(ort_library_path())


@pytest.fixture(scope="session")
def script(library: str) -> Script:
    def run(name: str, *, library: str = library, python: str = sys.executable, **environment: str) -> Any:
        command = [python, "-m", f"tests.plugins.{name}", library]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA library over the emulator, compiled here."""
    folder = tmp_path_factory.mktemp("emulator")
    source = ROOT / "plugins" / "tests" / "emulator"
    for command in (["cmake", "-S", source, "-B", folder], ["cmake", "--build", folder, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "libnanoquant_cuda_emulated.so"
