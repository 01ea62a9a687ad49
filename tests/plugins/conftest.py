# SPDX-License-Identifier: Apache-2.0
"""The library under test, and how its scripts are run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.system.native import ort_library_path

#: runs a script of this folder on a library: script(name, library=..., python=..., **environment) -> its JSON
Script = Callable[..., Any]


@pytest.fixture(scope="session")
def library() -> str:
    return str(ort_library_path())


@pytest.fixture(scope="session")
def script(library: str) -> Script:
    def run(name: str, *, library: str = library, python: str = sys.executable, **environment: str) -> Any:
        path = Path(__file__).parent / name
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run([python, str(path), library], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA library over the emulator, compiled here."""
    folder = tmp_path_factory.mktemp("emulator")
    source = Path(__file__).parents[2] / "plugins" / "tests" / "emulator"
    for command in (["cmake", "-S", source, "-B", folder], ["cmake", "--build", folder, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "libnanoquant_cuda_emulated.so"
