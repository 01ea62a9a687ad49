# SPDX-License-Identifier: Apache-2.0
"""Tiny bundles, exported once for the tests of all packages that run them.

What makes them is imported when asked for: tests of the kernels run where the exporters' packages are not installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("runtime")
    export_onnx(tiny_checkpoint(folder / "checkpoint"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def portable_bundle(tiny_bundle: Path) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx

    folder = tiny_bundle.parent
    export_onnx(folder / "checkpoint", folder / "portable", portable=True)
    return folder / "portable"
