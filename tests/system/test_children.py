# SPDX-License-Identifier: Apache-2.0
"""No program that we start, and no script that we write, runs code of the folder in which it is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanoquant_edge
from nanoquant_edge.system.children import NEUTRAL_FOLDER, child_environment, import_path, python_command, run_python

PACKAGE = Path(nanoquant_edge.__file__).parent
#: Modules that Python, pip and our command import: of the library, of packages, and ones that are not installed.
NAMES = ("json", "runpy", "pkgutil", "click", "numpy", "pip", "sitecustomize", "usercustomize", "nanoquant_edge")
OLD = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose modules leave a trace when they are imported."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.delenv(name, raising=False)
    return folder


def ran(folder: Path) -> str:
    trace = folder.parent / "ran"
    return trace.read_text() if trace.exists() else ""


@pytest.mark.parametrize(
    ("module", "arguments"), [("nanoquant_edge", ("--version",)), ("pip", ("--version",)), ("json.tool", ("--help",))]
)
@pytest.mark.parametrize("path", ["", ".", "{folder}"], ids=["plain", "dot", "absolute"])
def test_a_child_imports_nothing_from_the_working_folder(
    module: str, arguments: tuple[str, ...], path: str, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path:
        monkeypatch.setenv("PYTHONPATH", path.format(folder=stranger))
        monkeypatch.setattr(sys, "path", [str(stranger) if path != "." else "", *sys.path])
    done = run_python(module, *arguments, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert ran(stranger) == ""


def test_a_child_of_this_package_finds_what_this_process_imports(stranger: Path) -> None:
    script = stranger.parent / "show.py"
    script.write_text("import json, sys, nanoquant_edge; print(json.dumps([nanoquant_edge.__file__, sys.argv[1:]]))\n")
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path[:] = {import_path()!r}; exec(open({str(script)!r}).read())",
        ],
        capture_output=True,
        text=True,
        cwd=NEUTRAL_FOLDER,
    )
    assert json.loads(done.stdout)[0] == nanoquant_edge.__file__, done.stderr


@pytest.mark.skipif(not OLD, reason="needs a Python 3.10 of pyenv")
def test_python_3_10_is_kept_out_as_well(stranger: Path) -> None:
    command = python_command("this")
    command[0] = str(OLD[-1])
    command[4] = json.dumps([entry for entry in _path_of(OLD[-1]) if entry])
    done = subprocess.run(command, capture_output=True, text=True, cwd=stranger)
    assert "Zen" in done.stdout, done.stderr
    assert ran(stranger) == ""


def _path_of(python: Path) -> list[str]:
    line = [str(python), "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]
    found: list[str] = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return found


def test_folders_in_variables_stay_the_users(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", "libraries")
    environment = child_environment({"A": "b"})
    assert environment["NQ_EDGE_NATIVE_DIR"] == str(stranger / "libraries") and environment["A"] == "b"


def test_the_package_as_a_module_leaves_the_working_folder(stranger: Path) -> None:
    (stranger / "nanoquant_edge.py").unlink()  # whoever asks for this module there gets it
    (stranger / "runpy.py").unlink()
    (stranger / "pkgutil.py").unlink()  # imported by Python itself, before anything of ours
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-m", "nanoquant_edge", "--version"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ran(stranger) == ""


def test_python_is_started_through_the_helper_alone() -> None:
    """Our code starts Python in two places, isolated, and every script calls it isolated, or from the root."""
    users = [path for path in PACKAGE.rglob("*.py") if "[sys.executable," in path.read_text()]
    assert {path.relative_to(PACKAGE).as_posix() for path in users} <= {
        "system/children.py",
        "system/worker.py",
    }
    assert all(re.findall(r"\[sys\.executable, ([^,]+),", path.read_text()) == ['"-I"'] for path in users)
    call = re.compile(r'(?:\.venv/bin/python"?|"\$python"|"\$candidate"|\bpython3?) (-\w+)(?= )')
    scripts = [path for path in (PACKAGE / "deploy/templates").iterdir() if path.read_text().startswith("#!/bin/sh")]
    calls = [(path.name, flag) for path in scripts for flag in call.findall(path.read_text())]
    assert len(calls) >= 6
    assert {flag for _name, flag in calls} == {"-I"}, calls
    board = (PACKAGE / "exporters/tensorrt/board.py").read_text()
    assert all(
        "(cd / && python3 -c" in line for line in board.splitlines() if "python3 -c " in line and "#" not in line
    )
