# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin's whole life through its public C++ interface, under sanitizers, without a GPU.

The plugin is built over stand-in kernels, and over the real kernels' sources on an emulated GPU;
`plugins/tests/run_tensorrt_conformance.sh` drives it on a GPU with the same runner.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.native import tensorrt_library_path
from tests.plugins.tensorrt_headers import cuda_headers, tensorrt_headers
from tests.plugins.test_build import SOURCE, call, needs


def compiled(folder: Path, options: list[str], *targets: str) -> Path:
    """The folder with the targets, compiled without a warning."""
    needs("cmake", "c++")
    if tensorrt_headers() is None or cuda_headers() is None:
        pytest.skip("no TensorRT or CUDA headers")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    call(
        *("cmake", "-S", SOURCE, "-B", folder, *generator, "-DNQ_BUILD_TESTS=ON", "-DNQ_CUDA=OFF", *options),
        *(f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}", f"-DNQ_CUDA_HEADERS={cuda_headers()}"),
    )
    log = call("cmake", "--build", folder, "--target", *targets)
    assert "warning:" not in log, log[-4000:]
    return folder / "tests" / "tensorrt"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["-DNQ_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    targets = ("nanoquant_tensorrt_stand_in", "nq_tensorrt_conformance_host", "nq_workspace_bound")
    return compiled(tmp_path_factory.mktemp("conformance"), options, *targets)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory, emulated_library: Path) -> Path:
    options = [f"-DNQ_EMULATED_LIBRARY={emulated_library}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    targets = ("nanoquant_tensorrt_emulated", "nq_tensorrt_conformance_host")
    return compiled(tmp_path_factory.mktemp("emulated"), options, *targets)


def test_every_step_of_its_life(build: Path) -> None:
    log = call(build / "nq_tensorrt_conformance_host", build / "libnanoquant_tensorrt_stand_in.so")
    found = re.search(r"(\d+) checks, 0 failures", log)
    assert found, log[-4000:]
    assert int(found[1]) > 800
    assert log.count("ok     NanoQuantLinearGroup") == 3


def test_the_kernels_own_sources_on_an_emulated_gpu(emulated: Path) -> None:
    log = call(*runner_of(emulated), "brief", NQ_EMULATED_SM="86")
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["75", "87", "89", "110", "120"])
def test_every_layer_on_every_emulated_gpu(capability: str, emulated: Path) -> None:
    log = call(*runner_of(emulated), NQ_EMULATED_SM=capability)
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


def runner_of(folder: Path) -> tuple[Path, Path]:
    """The runner, and the plugin over the emulator."""
    return folder / "nq_tensorrt_conformance_host", folder / "libnanoquant_tensorrt_emulated.so"


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
