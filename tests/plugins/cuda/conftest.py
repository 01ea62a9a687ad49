# SPDX-License-Identifier: Apache-2.0
"""How the GPU tests find or build the library, and the table they write.

All of them, or a part (from the repository's root, on a machine with an NVIDIA GPU, PyTorch and pytest):

    make test-gpu
    python3 -m pytest -q tests/plugins/cuda -k gemv_bits             one algorithm
    python3 -m pytest -q tests/plugins/cuda -k "grid and gemm_mma"   also: variants, replay, refusals, tiles
    python3 -m pytest -q tests/plugins/cuda -x -k "576to1536 and gemv_bits and bf16"

The algorithms are auto, gemv_bits, gemv_bytes, gemm_mma and gemm_wgmma. `NQ_EDGE_NATIVE_DIR=FOLDER` names the folder of
libnanoquant_cuda.so; without it the library is built for this GPU in build/gpu-tests (CMake and nvcc needed).
`--gpu-table [PATH]` writes counts and worst errors to docs/figures/gpu_tests.json.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.cuda import capi, layers

ROOT = Path(__file__).resolve().parents[3]
NAME = "libnanoquant_cuda.so"
TYPE_NAMES = {capi.FLOAT32: "float32", capi.FLOAT16: "float16", capi.BFLOAT16: "bfloat16"}

#: record(group, run): checks a finished run against its limit and counts it in the table
Record = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    default = ROOT / "docs" / "figures" / "gpu_tests.json"
    parser.addoption("--gpu-table", nargs="?", const=str(default), default=None, help="write the table of GPU errors")


def _build() -> Path:
    """Build the library for this GPU alone; quick when nothing changed."""
    major, minor = torch.cuda.get_device_capability()
    folder = ROOT / "build" / "gpu-tests"
    configure = ["cmake", "-S", str(ROOT / "plugins"), "-B", str(folder), "-DNQ_CUDA=ON"]
    configure.append(f"-DNQ_CUDA_ARCHITECTURES={10 * major + minor}")
    build = ["cmake", "--build", str(folder), "--target", "nanoquant_cuda", "-j", str(min(8, os.cpu_count() or 1))]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.exit(f"{shlex.join(command)}\n{(done.stdout + done.stderr)[-4000:]}", returncode=2)
    return next(folder.rglob(NAME))


@pytest.fixture(scope="session")
def cuda() -> capi.Cuda:
    if not torch.cuda.is_available():
        pytest.fail("these tests need an NVIDIA GPU and a PyTorch that sees it")
    named = os.environ.get("NQ_EDGE_NATIVE_DIR")
    path = Path(named) / NAME if named else _build()
    if not path.is_file():
        pytest.fail(f"{path} does not exist; unset NQ_EDGE_NATIVE_DIR to build it")
    torch.zeros(1, device="cuda")  # the context
    return capi.Cuda(path)


@pytest.fixture(params=list(capi.ALGORITHMS))
def algorithm(request: pytest.FixtureRequest, cuda: capi.Cuda) -> int:
    """Each algorithm that this device has; one that it lacks must say so."""
    device = cuda.describe()
    lacks = (request.param == "gemv_bits" and not device.one_bit_tensor_cores) or (
        request.param == "gemm_wgmma" and not device.warpgroup_mma
    )
    if lacks:
        pytest.skip(f"sm_{device.compute_capability} has no {request.param}; test_refusals checks that it says so")
    return capi.ALGORITHMS[request.param]


@pytest.fixture(scope="session")
def table() -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {}


@pytest.fixture
def record(table: dict[tuple[str, str, str, str], dict[str, Any]]) -> Record:
    names = {value: key for key, value in capi.ALGORITHMS.items()}

    def check(group: str, run: layers.Run, limit: float | None = None) -> None:
        limit = run.limit if limit is None else limit
        error = float(run.errors().max())
        key = (group, names[run.algorithm], TYPE_NAMES[run.x_type], TYPE_NAMES[run.y_type])
        row = table.setdefault(key, {"passes": 0, "failed": 0, "worst_error": 0.0, "limit": limit})
        row["passes"] += 1
        row["failed"] += int(not error <= limit)
        row["worst_error"], row["limit"] = max(row["worst_error"], error), max(row["limit"], limit)
        shapes = [layer.shape for layer in run.layers]
        assert error <= limit, f"error {error:.3g} above {limit}: {key}, {shapes}, {run.rows} rows"

    return check


@pytest.fixture(scope="session", autouse=True)
def write_table(
    request: pytest.FixtureRequest, table: dict[tuple[str, str, str, str], dict[str, Any]]
) -> Iterator[None]:
    yield
    path = request.config.getoption("--gpu-table", default=None)
    if path is None or not table:
        return
    from benchmarks.figures import machine, versions

    keys = ("tests", "algorithm", "x", "y")
    entry = {
        "command": shlex.join(["pytest", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "repetitions": 1,
        "tests_failed": request.session.testsfailed,
        "tests_run": request.session.testscollected,
        "rows": [{**dict(zip(keys, key, strict=True)), **row} for key, row in sorted(table.items())],
    }
    Path(path).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
