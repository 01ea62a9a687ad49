# SPDX-License-Identifier: Apache-2.0
"""The native builds: no warnings, what the library exports and needs, sanitizers, another architecture, the headers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins import builds
from tests.plugins.conftest import ROOT, Script, built, call, needs

CROSS_ROOT = "/usr/aarch64-linux-gnu"


def test_kernels_stay_inside_their_buffers(isa: str, any_build: Path) -> None:
    for selftest in ("nq_selftest", "nq_table_selftest"):
        log = call(any_build / "tests" / selftest, NQ_CPU_ISA=isa)
        assert re.search(rf"{isa}: \d+ cases, 0 failures", log), log


def test_contradicting_nodes_are_refused_or_computed(any_build: Path) -> None:
    library = any_build / "onnxruntime" / "libnanoquant_ort.so"
    shown = call(any_build / "tests" / "nq_fuzz_ops", library, "4000", "3")
    counts = json.loads(shown.strip().splitlines()[-1])
    assert {"NanoQuantLinear", "NanoQuantLinearGroup", "NanoQuantEmbedding", "NanoQuantHead"} <= set(counts)
    for name, seen in counts.items():
        assert seen["computed"] >= seen["cases"] // 5, f"{name}: honest nodes must compute"
        assert seen["refused"] >= seen["cases"] // 5, f"{name}: damaged nodes must be refused"


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ["one_node", "hostile"])
def test_operator_stays_inside_its_buffers(name: str, script: Script) -> None:
    library = str(built("sanitized") / "onnxruntime" / "libnanoquant_ort.so")
    runtimes = [call("gcc", f"-print-file-name={lib}").strip() for lib in ("libasan.so", "libubsan.so")]
    if not all(Path(path).is_file() for path in runtimes):
        pytest.skip("the compiler's sanitizer runtimes are not shared libraries here")
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


def test_neon_kernels_under_emulation() -> None:
    needs("qemu-aarch64")
    folder = built("aarch64") / "tests"
    for selftest in ("nq_selftest", "nq_table_selftest"):
        log = call("qemu-aarch64", "-L", CROSS_ROOT, folder / selftest, NQ_CPU_ISA="neon")
        assert re.search(r"neon: \d+ cases, 0 failures", log), log


def test_a_build_that_cannot_be_made_is_told_and_stops_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.plugins.builds", "aarch64", "host"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"aarch64: not installed: cmake, {builds.CROSS_COMPILER}",
        "host: not installed: cmake, c++",
    ]


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
    check = builds.SOURCE / "tests" / "abi_check.cpp"
    call("c++", "-std=c++17", "-fsyntax-only", f"-I{folder}", check)
