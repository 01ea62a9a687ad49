# SPDX-License-Identifier: Apache-2.0
"""Every gap that the report knows is made here once, and named with its remedy."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.devices import doctor
from nanoquant_edge.devices.recognise import Machine, Nvidia
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system import native

PC = Machine("x86_64", (), "A Processor", "", "avx2", 4, 3.0, 16 << 30, ())
NANO = Machine("aarch64", ("nvidia,p3767-0005",), "Orin Nano", "36.4.3", "neon", 6, 1.7, 8 << 30, ())


def found(machine: Machine, name: str) -> list[doctor.Check]:
    return [check for check in doctor.examine(machine).checks if check.name == name]


def versions(monkeypatch: pytest.MonkeyPatch, **known: str | None) -> None:
    real = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: known[key] if (key := name.replace("-", "_")) in known else real(name)
    )


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert bool(caught.value.code) != report["healthy"]
    names = {check["name"] for check in report["checks"]}
    assert {"device", "Python", "numpy", "operator's library", "power sensors"} <= names
    assert all(check["advice"] for check in report["checks"] if check["status"] == "problem")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor"])
    assert "what to do" in capsys.readouterr().out


def test_two_runtimes_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    (check,) = found(PC, "ONNX Runtime")
    assert check.status == "problem" and "overwrite each other" in check.advice
    assert not doctor.examine(PC).healthy


def test_no_runtime_and_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)
    (check,) = found(PC, "ONNX Runtime")
    assert check.status == "note" and "pip install 'onnxruntime>=" in check.advice
    versions(monkeypatch, onnxruntime="1.22.1", onnxruntime_gpu=None)
    (check,) = found(PC, "onnxruntime")
    assert check.status == "problem" and "1.22.1 is older than 1.23" in check.found


def test_a_missing_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, tokenizers=None)
    (check,) = found(PC, "tokenizers")
    assert check.status == "problem" and check.advice == "pip install 'tokenizers>=0.20'"


def test_the_operators_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> dict[str, Any]:
        raise NqEdgeError("NQ-NATIVE-MISSING", "The native library does not exist.", "Build it.")

    monkeypatch.setattr(native, "ort_library_info", absent)
    (check,) = found(PC, "operator's library")
    assert (check.status, check.advice) == ("problem", "Build it.")
    for info, status, words in (
        ({"isa": "scalar", "version": metadata.version("nanoquant-edge")}, "note", "will be slow"),
        ({"isa": "avx2", "version": "9.9.9"}, "note", "build or install the library again"),
        ({"isa": "", "version": "0.1.0"}, "problem", "NQ_CPU_ISA"),
        ({"isa": "neon", "version": "0+unknown"}, "ok", ""),
    ):
        monkeypatch.setattr(native, "ort_library_info", lambda info=info: {**info, "path": "/lib"})
        (check,) = found(PC, "operator's library")
        assert check.status == status and words in check.advice, info


def test_a_board_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_module_version", lambda _name: None)
    report = doctor.examine(NANO)
    assert report.device == "jetson-orin-nano-8gb"
    advice = {check.name: check for check in report.checks}
    assert "nvidia-jetpack" in advice["TensorRT"].advice and advice["Jetson Linux"].status == "ok"
    strange = Machine("aarch64", NANO.compatible, "Orin Nano", "32.7.1", "neon", 6, 1.7, 8 << 30, ())
    (check,) = found(strange, "Jetson Linux")
    assert check.status == "note" and "JetPack 6.2 (L4T 36.4.3)" in check.advice


def test_libraries_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Machine(
        "x86_64", (), "PC", "", "avx2", 4, 3.0, 16 << 30, (Nvidia("NVIDIA GeForce RTX 4060", "8.9", 8, "580"),)
    )
    monkeypatch.setattr(native, "cuda_library_info", lambda: {"architectures": ["75", "90"], "version": "0.1.0"})
    monkeypatch.setattr(native, "tensorrt_library_info", lambda: {"architectures": ["86"], "version": "0.1.0"})
    monkeypatch.setattr(doctor, "_module_version", lambda name: "9.3.0" if name == "tensorrt" else None)
    versions(monkeypatch, nvidia_ml_py="13.0")
    checks = {check.name: check for check in doctor.examine(card).checks}
    assert checks["CUDA kernels"].status == "problem" and "CUDA_ARCHS=89" in checks["CUDA kernels"].advice
    assert checks["TensorRT plugin"].status == "ok"  # code for 8.6 runs on 8.9
    assert checks["tensorrt"].status == "problem" and "10.0 or newer" in checks["tensorrt"].advice
    assert "driver 580" in checks["NVIDIA GPU"].found


def test_a_broken_check_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_sources", lambda: 1 / 0)
    (check,) = found(PC, "power")
    assert check.status == "problem" and "division by zero" in check.found


def test_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "memory_available", lambda: 100_000_000)
    (check,) = found(PC, "free memory")
    assert check.status == "note" and "desktop" in check.advice
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    (check,) = found(PC, "Python")
    assert check.status == "problem"
