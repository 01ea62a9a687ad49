# SPDX-License-Identifier: Apache-2.0
"""Texts and validations through an engine bundle, and what the command line says of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Backend, Generator, SamplingConfig, open_backend, remarks
from nanoquant_edge.runtimes.target import Target
from nanoquant_edge.runtimes.tensorrt import UNPROVED
from nanoquant_edge.validation import Report, validate
from nanoquant_edge.validation.recorded import RecordedReference
from nanoquant_edge.validation.run import compare
from tests.runtimes.tensorrt.conftest import engine_info, write_engine_bundle
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine


class Imitated:
    """Opens engine bundles on the imitation; remembers the devices."""

    def __init__(self, graph: Path) -> None:
        self.graph = graph
        self.devices: list[HostDevice] = []

    def engine(self, bundle: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
        self.devices.append(HostDevice())
        return self.devices[-1], OrtEngine(self.devices[-1], bundle, self.graph)

    def backend(self, bundle: Bundle, **options: Any) -> Backend:
        return open_backend(bundle, engine_opener=self.engine, **options)

    def compare(self, bundle: Bundle) -> Report:
        """The bundle against its recorded reference."""
        return compare(
            Target.of(bundle),
            RecordedReference(bundle),
            opener=lambda extra: self.backend(bundle, extra_outputs=extra),
            dtype=bundle.dtype,
        )


@pytest.fixture
def imitated(graph_bundle: Path) -> Iterator[Imitated]:
    made = Imitated(graph_bundle)
    yield made
    assert all(device.closed and device.used == 0 for device in made.devices)


PROMPTS = ["The quick brown fox", "x", [{"role": "user", "content": "Größe, 東京?"}]]


@pytest.mark.parametrize(
    "sampling", [None, SamplingConfig(temperature=0.9, top_k=40, seed=5)], ids=["greedy", "seeded"]
)
def test_the_same_tokens_as_on_onnx_runtime(
    sampling: SamplingConfig | None, graph_bundle: Path, engine_bundle: Bundle, imitated: Imitated
) -> None:
    with (
        Generator.from_bundle(graph_bundle.parent / "plain", threads=1) as plain,
        Generator.from_bundle(engine_bundle.folder, backend=imitated.backend(engine_bundle)) as engine,
    ):
        assert engine.backend.name == "tensorrt"
        for prompt in PROMPTS:
            found = engine.generate(prompt, max_new_tokens=32, sampling=sampling)
            expected = plain.generate(prompt, max_new_tokens=32, sampling=sampling)
            assert (found.ids, found.text, found.kernel) == (expected.ids, expected.text, "nanoquant")
    assert imitated.devices[0].captures == 1


@pytest.fixture
def proved(graph_bundle: Path, tmp_path: Path) -> Bundle:
    """An engine bundle with what PyTorch recorded for the ONNX bundle of the same checkpoint."""
    shutil.copytree(graph_bundle, tmp_path / "graph")
    options = {"windows": 4, "window_length": 48, "new_tokens": 8, "threads": 1}
    validate(tmp_path / "graph", graph_bundle.parent / "checkpoint", record=True, **options)  # type: ignore[arg-type]
    bundle = write_engine_bundle(graph_bundle, tmp_path / "bundle")
    shutil.copy(tmp_path / "graph/reference.safetensors", bundle.folder)
    return bundle.write()


def test_an_engine_is_validated_against_the_recorded_reference(proved: Bundle, imitated: Imitated) -> None:
    report = imitated.compare(proved)
    states = {name: step.status for name, step in report.steps.items()}
    # Too few positions and windows to prove logits and perplexity; all are within their limits.
    assert states == {"layers": "pass", "logits": "skipped", "greedy": "pass", "perplexity": "skipped"}
    assert report.steps["layers"].figures["values"] == 2
    assert "all within limits" in report.steps["logits"].note
    assert report.remarks == (UNPROVED,)
    assert report.to_dict()["remarks"] == [UNPROVED]
    assert len(imitated.devices) == 2


def test_an_engine_without_debug_outputs_skips_the_layers(
    proved: Bundle, graph_bundle: Path, imitated: Imitated
) -> None:
    report = imitated.compare(replace(proved, engine=replace(proved.engine, debug_outputs=())))
    assert (report.steps["layers"].status, "--debug-outputs" in report.steps["layers"].note) == ("skipped", True)
    assert len(imitated.devices) == 1


def test_a_wrong_engine_fails_validation(proved: Bundle, imitated: Imitated) -> None:
    class Late(OrtEngine):
        """Takes every first token for padding: all positions are one too small."""

        def feeds(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            feeds["attention_mask"][:, 0] = 0
            return feeds

    def engine(bundle: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
        device = HostDevice()
        return device, Late(device, bundle, imitated.graph)

    imitated.engine = engine  # type: ignore[method-assign]
    report = imitated.compare(proved)
    assert report.status == "fail" and report.steps["logits"].status == "fail"


def test_the_manifest_chooses_the_backend(graph_bundle: Path, engine_bundle: Bundle, imitated: Imitated) -> None:
    with imitated.backend(engine_bundle, max_context=50) as engine, open_backend(Bundle.open(graph_bundle)) as plain:
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
    return subprocess.run(command, capture_output=True, text=True, env=environment)


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


def test_a_report_prints_what_is_unproved(proved: Bundle, imitated: Imitated) -> None:
    console = Console(file=io.StringIO(), width=120)
    imitated.compare(proved).print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "outcome: incomplete" in text  # too few windows to prove it
    assert "never executed one on supported hardware" in " ".join(text.split())


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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == []
