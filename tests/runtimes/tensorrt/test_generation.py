# SPDX-License-Identifier: Apache-2.0
"""Texts and validations through an engine bundle, and what the command line says of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Generator, SamplingConfig, open_backend, remarks
from nanoquant_edge.runtimes.tensorrt import UNPROVED, backend
from nanoquant_edge.validation import validate
from tests.runtimes.tensorrt.conftest import engine_info, write_engine_bundle
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine


@pytest.fixture
def imitated(graph_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[HostDevice]]:
    """Every engine bundle opens on the imitation."""
    devices: list[HostDevice] = []

    def opener(bundle: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
        devices.append(HostDevice())
        return devices[-1], OrtEngine(devices[-1], bundle, graph_bundle)

    monkeypatch.setattr(backend, "open_engine", opener)
    yield devices
    assert all(device.closed and device.used == 0 for device in devices)


PROMPTS = ["The quick brown fox", "x", [{"role": "user", "content": "Größe, 東京?"}]]


@pytest.mark.parametrize(
    "sampling", [None, SamplingConfig(temperature=0.9, top_k=40, seed=5)], ids=["greedy", "seeded"]
)
def test_the_same_tokens_as_on_onnx_runtime(
    sampling: SamplingConfig | None, graph_bundle: Path, engine_bundle: Bundle, imitated: list[HostDevice]
) -> None:
    with (
        Generator.from_bundle(graph_bundle.parent / "plain", threads=1) as plain,
        Generator.from_bundle(engine_bundle.folder) as engine,
    ):
        assert engine.backend.name == "tensorrt"
        for prompt in PROMPTS:
            found = engine.generate(prompt, max_new_tokens=32, sampling=sampling)
            expected = plain.generate(prompt, max_new_tokens=32, sampling=sampling)
            assert (found.ids, found.text, found.kernel) == (expected.ids, expected.text, "nanoquant")
    assert imitated[0].captures == 1


@pytest.fixture
def proved(graph_bundle: Path, tmp_path: Path) -> Bundle:
    """An engine bundle with what PyTorch recorded for the ONNX bundle of the same checkpoint."""
    shutil.copytree(graph_bundle, tmp_path / "graph")
    options = {"windows": 4, "window_length": 48, "new_tokens": 8, "threads": 1}
    validate(tmp_path / "graph", graph_bundle.parent / "checkpoint", record=True, **options)  # type: ignore[arg-type]
    bundle = write_engine_bundle(graph_bundle, tmp_path / "bundle")
    shutil.copy(tmp_path / "graph/reference.safetensors", bundle.folder)
    return bundle.write()


def test_an_engine_is_validated_against_the_recorded_reference(proved: Bundle, imitated: list[HostDevice]) -> None:
    report = validate(proved)
    states = {rung.number: rung.status for rung in report.rungs}
    # Too few positions and windows to prove rungs 4 and 6; all are within their limits.
    assert states == {3: "pass", 4: "skipped", 5: "pass", 6: "skipped"}
    assert report.rung(3).figures["values"] == 2
    assert "all within limits" in report.rung(4).note
    assert report.remarks == (UNPROVED,)
    assert report.to_dict()["remarks"] == [UNPROVED]
    assert len(imitated) == 2


def test_an_engine_without_debug_outputs_skips_rung_3(
    proved: Bundle, graph_bundle: Path, imitated: list[HostDevice]
) -> None:
    report = validate(replace(proved, engine=replace(proved.engine, debug_outputs=())))
    assert (report.rung(3).status, "--debug-outputs" in report.rung(3).note) == ("skipped", True)
    assert len(imitated) == 1


def test_a_wrong_engine_fails_validation(proved: Bundle, imitated: list[HostDevice], monkeypatch: Any) -> None:
    from nanoquant_edge.runtimes.tensorrt import plan

    def late(*arguments: Any) -> Any:
        mask = plan.attention_mask(*arguments)
        mask[:, 0] = 0  # one valid token too few: every position is one too small
        return mask

    monkeypatch.setattr(backend, "attention_mask", late)
    report = validate(proved)
    assert report.status == "fail" and report.rung(4).status == "fail"


def test_the_manifest_chooses_the_backend(graph_bundle: Path, engine_bundle: Bundle, imitated: Any) -> None:
    with open_backend(engine_bundle, max_context=50) as engine, open_backend(Bundle.open(graph_bundle)) as plain:
        assert (engine.name, engine.max_context, plain.name) == ("tensorrt", 50, "onnxruntime")
    assert (remarks(engine_bundle), remarks(Bundle.open(graph_bundle))) == ((UNPROVED,), ())
    with pytest.raises(NqEdgeError, match="the board builds its engine") as caught:
        open_backend(replace(engine_bundle, backend="tensorrt-build", engine=None))
    assert caught.value.code == "NQ-BACKEND" and "build.sh" in caught.value.hint
    with pytest.raises(NqEdgeError, match="made for 'openvino'") as caught:
        open_backend(replace(engine_bundle, backend="openvino"))
    assert caught.value.code == "NQ-BACKEND"


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from nanoquant_edge.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NQ_EDGE_NATIVE_DIR": "/nowhere"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("flavour", ["rtx", "standard"])
def test_the_command_line_names_what_is_missing_and_what_is_unproved(
    flavour: str, graph_bundle: Path, tmp_path: Path
) -> None:
    bundle = write_engine_bundle(graph_bundle, tmp_path / "bundle", engine_info(flavour=flavour))
    done = _run("generate", bundle.folder, "-p", "x", "-n", "2")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "never executed one on supported hardware" in done.stderr
    # Whatever this machine lacks first: TensorRT, cuda-python, or the plugin.
    assert any(code in done.stderr for code in ("NQ-MISSING", "NQ-BACKEND", "NQ-NATIVE-MISSING"))
    done = _run("validate", bundle.folder)
    assert done.returncode == 2 and "NQ-REFERENCE" in done.stderr


def test_validate_prints_what_is_unproved(proved: Bundle, imitated: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from nanoquant_edge.cli.validate import command

    with pytest.raises(SystemExit) as left:
        command.main([str(proved.folder)], standalone_mode=False)
    assert left.value.code == 1  # too few windows to prove it
    assert "never executed one on supported hardware" in " ".join(capsys.readouterr().out.split())


_PROGRAM = """
import json, sys
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes import Generator
try:
    Generator.from_bundle(sys.argv[1])
except NqEdgeError as error:
    heavy = {"torch", "transformers", "onnx", "onnxruntime"}
    print(json.dumps([error.code, sorted(heavy & set(sys.modules))]))
"""


def test_neither_torch_nor_onnx_is_imported(engine_bundle: Bundle) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(engine_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == []
