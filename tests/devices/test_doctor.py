# SPDX-License-Identifier: Apache-2.0
"""Every gap that the report knows is made here once, and named with its remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.devices import doctor
from nanoquant_edge.devices.probes import Probes
from nanoquant_edge.devices.recognise import Machine, Nvidia
from nanoquant_edge.errors import NqEdgeError

PC = Machine("x86_64", (), "A Processor", "", "avx2", 4, 3.0, 16 << 30, ())
NANO = Machine("aarch64", ("nvidia,p3767-0005",), "Orin Nano", "36.4.3", "neon", 6, 1.7, 8 << 30, ())


def installed(**known: str | None) -> Probes:
    """Probes of this machine, with other versions of some packages; "-" is written as "_"."""
    real = Probes().version
    return Probes(version=lambda name: known[key] if (key := name.replace("-", "_")) in known else real(name))


def found(name: str, machine: Machine = PC, probes: Probes | None = None) -> doctor.Check:
    """The one line of a report with this name."""
    (check,) = (check for check in doctor.examine(machine, probes).checks if check.name == name)
    return check


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
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("nq-edge on ") and "problem" in first and "note" in first
    assert any(line.startswith("ok    Python") for line in rest)


def test_two_runtimes_side_by_side() -> None:
    both = installed(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    check = found("ONNX Runtime", probes=both)
    assert check.status == "problem" and "overwrite each other" in check.advice
    assert not doctor.examine(PC, both).healthy


def test_no_runtime_and_an_old_one() -> None:
    check = found("ONNX Runtime", probes=installed(onnxruntime=None, onnxruntime_gpu=None))
    assert check.status == "note" and check.advice.startswith("pip install 'onnxruntime>=1.23'")
    check = found("onnxruntime", probes=installed(onnxruntime="1.22.1", onnxruntime_gpu=None))
    assert check.status == "problem" and "1.22.1 is older than 1.23" in check.found


def test_a_missing_requirement_and_a_package_without_metadata() -> None:
    check = found("tokenizers", probes=installed(tokenizers=None))
    assert check.status == "problem" and check.advice == "pip install 'tokenizers>=0.20'"
    check = found("nanoquant-edge", probes=Probes(requirements=lambda: None))
    assert check.status == "note" and check.advice == "pip install ."


def test_the_operators_library() -> None:
    def absent() -> dict[str, Any]:
        raise NqEdgeError("NQ-NATIVE-MISSING", "The native library does not exist.", "Build it.")

    check = found("operator's library", probes=Probes(operator_library=absent))
    assert (check.status, check.advice) == ("problem", "Build it.")
    for info, status, words in (
        ({"isa": "scalar", "version": metadata.version("nanoquant-edge")}, "note", "will be slow"),
        ({"isa": "avx2", "version": "9.9.9"}, "note", "build or install the library again"),
        ({"isa": "", "version": "0.1.0"}, "problem", "NQ_CPU_ISA"),
        ({"isa": "neon", "version": "0+unknown"}, "ok", ""),
    ):
        said = {**info, "path": "/lib"}
        check = found("operator's library", probes=Probes(operator_library=lambda said=said: said))
        assert check.status == status and words in check.advice, info


def test_a_library_that_does_not_register() -> None:
    def fails() -> None:
        raise RuntimeError("undefined symbol: x\x1b[2J")

    check = found("operator in ONNX Runtime", probes=Probes(register=fails))
    assert check.status == "problem" and check.found == "undefined symbol: x?[2J"


def test_a_board_without_tensorrt() -> None:
    without = Probes(module_version=lambda _name: None)
    report = doctor.examine(NANO, without)
    assert report.device == "jetson-orin-nano-8gb"
    advice = {check.name: check for check in report.checks}
    assert "nvidia-jetpack" in advice["TensorRT"].advice and advice["Jetson Linux"].status == "ok"
    strange = replace(NANO, l4t="32.7.1")
    check = found("Jetson Linux", strange, without)
    assert check.status == "note" and "JetPack 6.2 (L4T 36.4.3)" in check.advice


def test_libraries_for_other_gpus() -> None:
    card = replace(PC, gpus=(Nvidia("NVIDIA GeForce RTX 4060", "8.9", 8, "580"),))
    probes = Probes(
        version=installed(nvidia_ml_py="13.0").version,
        cuda_library=lambda: {"architectures": ["75", "90"], "version": "0.1.0"},
        tensorrt_library=lambda: {"architectures": ["86"], "version": "0.1.0"},
        module_version=lambda name: "9.3.0" if name == "tensorrt" else None,
        program=lambda _name: None,
    )
    checks = {check.name: check for check in doctor.examine(card, probes).checks}
    assert checks["CUDA kernels"].status == "problem" and "CUDA_ARCHS=89" in checks["CUDA kernels"].advice
    assert checks["TensorRT plugin"].status == "ok"  # code for 8.6 runs on 8.9
    assert checks["tensorrt"].status == "problem" and "10.0 or newer" in checks["tensorrt"].advice
    assert "driver 580" in checks["NVIDIA GPU"].found and checks["nvcc"].found == "not found"


def test_a_driver_that_shows_no_gpu() -> None:
    probes = Probes(version=installed(nvidia_ml_py="13.0").version, program=lambda name: f"/usr/bin/{name}")
    assert found("NVIDIA GPU", probes=probes).status == "note"
    none = found("NVIDIA GPU", probes=replace(probes, program=lambda _name: None))
    assert (none.status, none.found) == ("ok", "none")


def test_a_broken_check_is_one_line() -> None:
    def fails() -> Any:
        raise ZeroDivisionError("division by zero")

    check = found("power", probes=Probes(power=fails))
    assert check.status == "problem" and "division by zero" in check.found


def test_little_memory_an_old_python_and_the_limits_of_a_container() -> None:
    check = found("free memory", probes=Probes(free_memory=lambda: 100_000_000))
    assert check.status == "note" and "desktop" in check.advice
    assert found("Python", probes=Probes(python=(3, 9, 1))).status == "problem"
    check = found("limits of this process", replace(PC, usable_cores=1, memory_limit=2 << 30))
    assert check.status == "note" and check.found == "1 of 4 cores and 2.1 GB of memory"
