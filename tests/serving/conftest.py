# SPDX-License-Identifier: Apache-2.0
"""One server over the tiny bundle for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def roomy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that has room for functions and their schemas."""
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("roomy")
    export_onnx(tiny_checkpoint(folder / "checkpoint", max_position_embeddings=2048), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def address(roomy_bundle: Path) -> Iterator[str]:
    """Where it listens."""
    pytest.importorskip("uvicorn")
    from tests.serving.running import running

    with running(roomy_bundle) as found:
        yield found
