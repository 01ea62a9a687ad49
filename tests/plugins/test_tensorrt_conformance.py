# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin's whole life through its public C++ interface, under sanitizers, without a GPU.

The plugin is built over stand-in kernels that compute on the CPU; `plugins/tests/run_tensorrt_conformance.sh` drives
the real one on a GPU with the same runner.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.native import tensorrt_library_path
from tests.plugins.tensorrt_headers import cuda_headers, tensorrt_headers
from tests.plugins.test_build import SOURCE, call, needs


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("cmake", "c++")
    if tensorrt_headers() is None or cuda_headers() is None:
        pytest.skip("no TensorRT or CUDA headers")
    folder = tmp_path_factory.mktemp("conformance")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    call(
        *("cmake", "-S", SOURCE, "-B", folder, *generator, "-DNQ_BUILD_TESTS=ON", "-DNQ_CUDA=OFF"),
        *(f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}", f"-DNQ_CUDA_HEADERS={cuda_headers()}"),
        *("-DNQ_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
    )
    targets = ("nanoquant_tensorrt_stand_in", "nq_tensorrt_conformance_host", "nq_workspace_bound")
    log = call("cmake", "--build", folder, "--target", *targets)
    assert "warning:" not in log, log[-4000:]
    return folder / "tests" / "tensorrt"


def test_every_step_of_its_life(build: Path) -> None:
    log = call(build / "nq_tensorrt_conformance_host", build / "libnanoquant_tensorrt_stand_in.so")
    found = re.search(r"(\d+) checks, 0 failures", log)
    assert found, log[-4000:]
    assert int(found[1]) > 800
    assert log.count("ok     NanoQuantLinearGroup") == 3


def test_the_real_library_up_to_enqueue(build: Path) -> None:
    try:
        library = tensorrt_library_path()
    except NqEdgeError as error:
        pytest.skip(str(error))
    log = call(build / "nq_tensorrt_conformance_host", library, "all-but-enqueue")
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


def test_a_missing_library_is_told(build: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot open shared object file"):
        call(build / "nq_tensorrt_conformance_host", tmp_path / "none.so")


def test_the_workspace_bound_holds_for_every_row_count(build: Path) -> None:
    assert re.search(r"\d+ plans, 0 above their bound", call(build / "nq_workspace_bound"))
