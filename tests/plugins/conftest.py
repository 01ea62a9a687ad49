# SPDX-License-Identifier: Apache-2.0
"""The library under test, and how its scripts are run in a process of their own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.system.native import ort_library_path
from tests.plugins import builds

ROOT = Path(__file__).parents[2]
#: Runs a module of this folder on a library: script(name, library=..., python=..., **environment) -> its JSON.
Script = Callable[..., Any]
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
#: kernels -> flags of /proc/cpuinfo that they need
FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": _AVX512,
    "avx512vbmi": {*_AVX512, "avx512vbmi", "avx512_vnni"},
}


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


def needs(*tools: str) -> None:
    """Skip the test where a tool is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def call(*command: str | Path, **environment: str) -> str:
    """What a command that must succeed says."""
    done = subprocess.run([*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def check_grid(result: dict[str, Any], cases: int) -> None:
    """A script's grid has so many cases at least, each within its limit."""
    assert len(result["rows"]) >= cases
    bad = [row for row in result["rows"] if not row["error"] <= row["limit"]]
    assert not bad, bad[:5]


@pytest.fixture(params=["scalar", "avx2", "avx512", "avx512vbmi", "neon"])
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
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


def built(name: str) -> Path:
    """The folder of a native build for tests; the test is skipped where a tool for it is missing."""
    try:
        return builds.build(name)
    except builds.Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The CUDA library over the emulator."""
    return built("emulator") / "libnanoquant_cuda_emulated.so"


@pytest.fixture(scope="session")
def host_build() -> Path:
    """The native programs of the tests for this machine, as the product is compiled."""
    return built("host")


@pytest.fixture(scope="session", params=["host", pytest.param("sanitized", marks=pytest.mark.sanitize)])
def any_build(request: pytest.FixtureRequest) -> Path:
    """The same, and once more under the address and undefined-behaviour sanitizers (`make sanitize`)."""
    return built(request.param)
