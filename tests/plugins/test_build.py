# SPDX-License-Identifier: Apache-2.0
"""The native build: no warnings, what the library exports and needs, sanitizers, another architecture, the headers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.conftest import Script

SOURCE = Path(__file__).parents[2] / "plugins"
CROSS = "aarch64-linux-gnu-g++"
CROSS_ROOT = "/usr/aarch64-linux-gnu"


def needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def call(*command: str | Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def build(folder: Path, *options: str) -> Path:
    """Configure and build everything but the CUDA kernels and the TensorRT plugin; a warning is a failure."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    without = ["-DNQ_CUDA=OFF", "-DNQ_TENSORRT=OFF"]
    call("cmake", "-S", SOURCE, "-B", folder, *generator, "-DNQ_BUILD_TESTS=ON", *without, *options)
    log = call("cmake", "--build", folder)
    assert "warning:" not in log, log[-4000:]
    return folder


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("cmake", "c++", "ctest")
    return build(tmp_path_factory.mktemp("sanitized"), "-DNQ_SANITIZE=address,undefined")


def test_kernels_stay_inside_their_buffers(sanitized: Path) -> None:
    log = call("ctest", "--test-dir", sanitized, "--output-on-failure")
    assert "100% tests passed" in log
    assert re.search(r"kernels_scalar \.+ +Passed", log), log
    assert re.search(r"tables_scalar \.+ +Passed", log), log


def test_contradicting_nodes_are_refused_or_computed(sanitized: Path) -> None:
    library = sanitized / "onnxruntime" / "libnanoquant_ort.so"
    shown = call(sanitized / "tests" / "nq_fuzz_ops", library, "4000", "3")
    counts = json.loads(shown.strip().splitlines()[-1])
    assert {"NanoQuantLinear", "NanoQuantLinearGroup", "NanoQuantEmbedding", "NanoQuantHead"} <= set(counts)
    for name, seen in counts.items():
        assert seen["computed"] >= seen["cases"] // 5, f"{name}: honest nodes must compute"
        assert seen["refused"] >= seen["cases"] // 5, f"{name}: damaged nodes must be refused"


@pytest.mark.parametrize("name", ["one_node", "hostile"])
def test_operator_stays_inside_its_buffers(name: str, sanitized: Path, script: Script) -> None:
    runtimes = [call("gcc", f"-print-file-name={lib}").strip() for lib in ("libasan.so", "libubsan.so")]
    if not all(Path(path).is_file() for path in runtimes):
        pytest.skip("the compiler's sanitizer runtimes are not shared libraries here")
    library = str(sanitized / "onnxruntime" / "libnanoquant_ort.so")
    # The interpreter leaks by design, so only errors of access count here.
    result = script(name, library=library, LD_PRELOAD=" ".join(runtimes), ASAN_OPTIONS="detect_leaks=0")
    if name == "hostile":
        assert all(result.values()), [case for case, message in result.items() if not message]
    else:
        assert all(row["error"] <= row["limit"] for row in result["rows"])


def test_library_exports_three_functions_and_needs_only_libc(library: str) -> None:
    needs("nm", "readelf")
    exported = {line.split()[-1] for line in call("nm", "-D", "--defined-only", library).splitlines()}
    assert exported == {"RegisterCustomOps", "nq_ort_info", "nq_ort_sign_rate"}
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", call("readelf", "-d", library))
    assert set(needed) <= {"libc.so.6"}
    versions = re.findall(r"GLIBC_2\.(\d+)", call("nm", "-D", "--undefined-only", library))
    assert max(map(int, versions)) <= 35, "JetPack 6 has GLIBC 2.35"


def test_neon_kernels_under_emulation(tmp_path: Path) -> None:
    needs("cmake", CROSS, "qemu-aarch64")
    target = [f"-DCMAKE_CXX_COMPILER={CROSS}", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    folder = build(tmp_path, *target) / "tests"
    for selftest in ("nq_selftest", "nq_table_selftest"):
        log = call("qemu-aarch64", "-L", CROSS_ROOT, folder / selftest)
        assert re.search(r"neon: \d+ cases, 0 failures", log), log


def header_folder() -> Path | None:
    """The folder of ONNX Runtime's own C headers, if there are any."""
    candidates = [
        os.environ.get("ONNXRUNTIME_INCLUDE_DIR"),
        "/usr/include/onnxruntime",
        "/usr/local/include/onnxruntime",
    ]
    for candidate in filter(None, candidates):
        for folder in [Path(candidate), *Path(candidate).glob("**/session")]:
            if (folder / "onnxruntime_c_api.h").is_file():
                return folder
    return None


def test_slots_agree_with_the_real_headers(tmp_path: Path) -> None:
    needs("c++")
    folder = header_folder()
    if folder is None:
        pytest.skip("no ONNX Runtime C headers; set ONNXRUNTIME_INCLUDE_DIR")
    check = SOURCE / "tests" / "abi_check.cpp"
    call("c++", "-std=c++17", "-fsyntax-only", f"-I{folder}", check)
