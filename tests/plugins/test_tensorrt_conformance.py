# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin's whole life through its public C++ interface, without a GPU.

The plugin is built over stand-in kernels, once more under sanitizers, and over the real kernels' sources on an emulated
GPU; `plugins/tests/run_tensorrt_conformance.sh` drives it on a GPU with the same runner.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.native import tensorrt_library_path
from tests.plugins.conftest import call
from tests.plugins.tensorrt_headers import cuda_headers, tensorrt_headers

pytestmark = pytest.mark.skipif(
    tensorrt_headers() is None or cuda_headers() is None, reason="no TensorRT or CUDA headers"
)


@pytest.fixture
def folder(any_build: Path) -> Path:
    return any_build / "tests" / "tensorrt"


@pytest.fixture
def emulated(host_build: Path) -> tuple[Path, Path]:
    """The runner, and the plugin over the emulator."""
    folder = host_build / "tests" / "tensorrt"
    return folder / "nq_tensorrt_conformance_host", folder / "libnanoquant_tensorrt_emulated.so"


def test_every_step_of_its_life(folder: Path) -> None:
    log = call(folder / "nq_tensorrt_conformance_host", folder / "libnanoquant_tensorrt_stand_in.so")
    found = re.search(r"(\d+) checks, 0 failures", log)
    assert found, log[-4000:]
    assert int(found[1]) > 800
    assert log.count("ok     NanoQuantLinearGroup") == 3


def test_the_kernels_own_sources_on_an_emulated_gpu(emulated: tuple[Path, Path]) -> None:
    log = call(*emulated, "brief", NQ_EMULATED_SM="86")
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["75", "87", "89", "110", "120"])
def test_every_layer_on_every_emulated_gpu(capability: str, emulated: tuple[Path, Path]) -> None:
    log = call(*emulated, NQ_EMULATED_SM=capability)
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


def test_the_real_library_up_to_enqueue(folder: Path) -> None:
    try:
        library = tensorrt_library_path()
    except NqEdgeError as error:
        pytest.skip(str(error))
    log = call(folder / "nq_tensorrt_conformance_host", library, "all-but-enqueue")
    assert re.search(r"\d+ checks, 0 failures", log), log[-4000:]


def test_a_missing_library_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot open shared object file"):
        call(folder / "nq_tensorrt_conformance_host", tmp_path / "none.so")


def test_the_workspace_bound_holds_for_every_row_count(folder: Path) -> None:
    assert re.search(r"\d+ plans, 0 above their bound", call(folder / "nq_workspace_bound"))
