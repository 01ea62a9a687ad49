# SPDX-License-Identifier: Apache-2.0
"""Where `nanoquant_edge.system.native` looks for the library, and what it says when there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nanoquant_edge.system.native as native
from nanoquant_edge.errors import NqEdgeError


def test_the_override_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(native.ort_library_path(), tmp_path / native.ORT_LIBRARY_NAME)
    monkeypatch.setenv(native.NATIVE_DIR_VARIABLE, str(tmp_path))
    assert native.ort_library_path() == tmp_path / native.ORT_LIBRARY_NAME
    assert native.ort_library_info()["path"] == str(tmp_path / native.ORT_LIBRARY_NAME)


def test_an_override_without_a_library_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.NATIVE_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(NqEdgeError, match=r"NQ_EDGE_NATIVE_DIR is .* does not exist") as error:
        native.ort_library_path()
    assert error.value.code == "NQ-NATIVE-MISSING"
    assert "or unset it" in error.value.hint


def test_a_missing_build_says_how_to_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native.NATIVE_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "system" / "native.py"))
    with pytest.raises(NqEdgeError, match="does not exist") as error:
        native.ort_library_path()
    assert error.value.code == "NQ-NATIVE-MISSING"
    assert "cmake -S plugins" in error.value.hint


def test_a_file_that_is_no_library_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / native.ORT_LIBRARY_NAME).write_bytes(b"not a library")
    monkeypatch.setenv(native.NATIVE_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(NqEdgeError, match="cannot be used") as error:
        native.ort_library_info()
    assert error.value.code == "NQ-NATIVE-MISSING"


def test_a_forced_instruction_set_is_reported() -> None:
    code = "from nanoquant_edge.system.native import ort_library_info as i; print(i()['isa'])"
    env = {"NQ_CPU_ISA": "scalar", "PATH": "/usr/bin:/bin"}
    root = Path(native.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "scalar", done.stderr
