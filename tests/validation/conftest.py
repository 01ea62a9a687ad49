# SPDX-License-Identifier: Apache-2.0
"""One tiny checkpoint, its bundle, and a recorded reference, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.validation import Report, validate
from tests.tiny import tiny_checkpoint


@dataclass(frozen=True)
class Proof:
    """Checkpoint, bundle with a recorded reference, and the report of the recording."""

    checkpoint: Checkpoint
    bundle: Path
    report: Report


@pytest.fixture(scope="session")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("proof")
    checkpoint = tiny_checkpoint(folder / "model", attention_bias=True, num_hidden_layers=3)
    export_onnx(checkpoint, folder / "bundle")
    report = validate(folder / "bundle", checkpoint, record=True, threads=1)
    return Proof(checkpoint, folder / "bundle", report)


@pytest.fixture
def spoiled(proof: Proof, tmp_path: Path) -> Callable[[bytes, bytes], Path]:
    """Replaces bytes in a copy of the bundle's weights; the manifest is written anew."""

    def replace(old: bytes, new: bytes) -> Path:
        shutil.copytree(proof.bundle, tmp_path / "spoiled")
        data = tmp_path / "spoiled/model.onnx.data"
        path = data if old in data.read_bytes() else tmp_path / "spoiled/model.onnx"
        raw = path.read_bytes()
        assert raw.count(old) == 1
        path.write_bytes(raw.replace(old, new))
        Bundle.open(tmp_path / "spoiled", verify=False).write()
        return tmp_path / "spoiled"

    return replace
