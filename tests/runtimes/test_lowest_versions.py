# SPDX-License-Identifier: Apache-2.0
"""The runtime in an environment of the lowest supported versions, named by NQ_EDGE_LOWEST_PYTHON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.runtimes import Generator
from tests.families import FAMILY_CONFIGS, family_config
from tests.tiny import tiny_checkpoint

_PROGRAM = """
import json, sys
import onnxruntime
from nanoquant_edge.runtimes import Generator
options = {"threads": 1, "allow_portable": sys.argv[2] == "portable"}
with Generator.from_bundle(sys.argv[1], **options) as generator:
    result = generator.generate([{"role": "user", "content": "Hi"}], max_new_tokens=12)
print(json.dumps([onnxruntime.__version__, result.ids, result.kernel]))
"""


@pytest.fixture(scope="module")
def lowest() -> str:
    python = os.environ.get("NQ_EDGE_LOWEST_PYTHON")
    if not python:
        pytest.skip("NQ_EDGE_LOWEST_PYTHON is not set")
    needed = "import onnxruntime, tokenizers, jinja2, click, numpy"
    if subprocess.run([python, "-c", needed], capture_output=True).returncode:
        pytest.skip("the Python of NQ_EDGE_LOWEST_PYTHON lacks the runtime's base packages")
    return python


@pytest.mark.parametrize("kernel", ["nanoquant", "portable"])
def test_a_chat_has_the_same_ids_on_the_lowest_versions(kernel: str, lowest: str, portable_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    if kernel == "portable":
        environment["NQ_EDGE_NATIVE_DIR"] = "/nowhere"
    command = [lowest, "-c", _PROGRAM, str(portable_bundle), kernel]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, ids, used = json.loads(done.stdout)
    with Generator.from_bundle(portable_bundle, threads=1) as generator:
        expected = generator.generate([{"role": "user", "content": "Hi"}], max_new_tokens=12)
    assert (ids, used) == (expected.ids, kernel), version


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_families_have_the_same_ids_on_the_lowest_versions(name: str, lowest: str, tmp_path: Path) -> None:
    """ONNX Runtime 1.23 counts a local window otherwise; the prompt is longer than every window."""
    checkpoint = tiny_checkpoint(tmp_path / "c", **family_config(name))
    export_onnx(checkpoint, tmp_path / "b")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [lowest, "-c", _PROGRAM.replace('"Hi"', '"Hi " * 20'), str(tmp_path / "b"), "nanoquant"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with Generator.from_bundle(tmp_path / "b", threads=1) as generator:
        expected = generator.generate([{"role": "user", "content": "Hi " * 20}], max_new_tokens=12)
    assert json.loads(done.stdout)[1] == expected.ids


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_tables_in_codes_have_the_same_ids_on_the_lowest_versions(kind: str, lowest: str, tmp_path: Path) -> None:
    export_onnx(tiny_checkpoint(tmp_path / "c", embedding=kind, tie_word_embeddings=False), tmp_path / "b")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [lowest, "-c", _PROGRAM, str(tmp_path / "b"), "nanoquant"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with Generator.from_bundle(tmp_path / "b", threads=1) as generator:
        expected = generator.generate([{"role": "user", "content": "Hi"}], max_new_tokens=12)
    assert json.loads(done.stdout)[1] == expected.ids
