# SPDX-License-Identifier: Apache-2.0
"""A tiny bundle, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    export_onnx(tiny_checkpoint(folder / "checkpoint"), folder / "bundle")
    return folder / "bundle"
