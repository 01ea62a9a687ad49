# SPDX-License-Identifier: Apache-2.0
"""The check that CI runs on wheels: it passes ours and names what is wrong with others."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.native import ORT_LIBRARY_NAME, ort_library_path

ROOT = Path(__file__).parents[1]
pytest.importorskip("elftools")
SCRIPT = ROOT / ".ci" / "check_wheel.py"
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())


@pytest.fixture
def library() -> Path:
    try:
        return ort_library_path()
    except NqEdgeError:
        pytest.skip("the native library is not built")


def check(folder: Path, machine: str, without: str = "-", **files: Path) -> tuple[int, str]:
    """The check's verdict on a wheel with the package's files, those that begin with `without` left out."""
    wheel = folder / f"nanoquant_edge-0-py3-none-linux_{machine}.whl"
    listed = subprocess.run(["git", "ls-files", "nanoquant_edge"], cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*listed.stdout.split(), "nanoquant_edge/_sources/plugins/CMakeLists.txt"]:
            if not name.startswith(without):
                archive.writestr(name, "")
        for name, path in files.items():
            archive.write(path, f"nanoquant_edge/_native/{name}.so")
    done = subprocess.run([sys.executable, str(SCRIPT), str(wheel)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_our_library_passes(tmp_path: Path, library: Path) -> None:
    status, shown = check(tmp_path, MACHINE, **{ORT_LIBRARY_NAME.removesuffix(".so"): library})
    assert status == 0, shown
    assert "needs libc.so.6" in shown and "PROBLEM" not in shown


def test_problems_are_named(tmp_path: Path, library: Path) -> None:
    other = "aarch64" if MACHINE == "x86_64" else "x86_64"
    status, shown = check(tmp_path, other, **{ORT_LIBRARY_NAME.removesuffix(".so"): library})
    assert status == 1 and f"is not a library for {other}" in shown
    status, shown = check(tmp_path, MACHINE, something_else=library)
    assert status == 1 and "the wheel lacks" in shown
    compiler = shutil.which("c++")
    if compiler is None:
        return
    source = tmp_path / "needy.cpp"
    source.write_text("#include <string>\nstd::string f(int n) { return std::to_string(n); }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(tmp_path / "needy.so"), str(source)], check=True)
    status, shown = check(tmp_path, MACHINE, libnanoquant_ort=tmp_path / "needy.so")
    assert status == 1 and "PROBLEM: libnanoquant_ort.so needs" in shown and "libstdc++.so.6" in shown


def test_a_wheel_without_a_package_is_refused(tmp_path: Path, library: Path) -> None:
    name = ORT_LIBRARY_NAME.removesuffix(".so")
    status, shown = check(tmp_path, MACHINE, without="nanoquant_edge/models/", **{name: library})
    assert status == 1 and "the wheel lacks nanoquant_edge/models/families.py" in shown
    whole, part = (tmp_path / f"{name}.whl" for name in ("whole", "part"))
    for wheel, names in ((whole, ["a.py", "b.py"]), (part, ["a.py"])):
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in names:
                archive.writestr(f"nanoquant_edge/{name}", "")
    for other, status in ((whole, 0), (part, 1)):
        compared = subprocess.run(
            [sys.executable, str(SCRIPT), "--same", str(whole), str(other)], capture_output=True, text=True
        )
        assert compared.returncode == status, compared.stdout
    assert "only one wheel holds nanoquant_edge/b.py" in compared.stdout
