# SPDX-License-Identifier: Apache-2.0
"""The compressed model in models/: the file that its page describes, and with its base the text that the page shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nanoquant_edge.importers.layers import foreign_layers
from tests.command import run

safetensors = pytest.importorskip("safetensors.numpy")

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models/SmolLM2-135M-Instruct-1bpw.safetensors"
BASE = ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"
PAGE = (ROOT / "models/README.md").read_text(encoding="utf-8")


def test_the_file_is_the_one_described() -> None:
    assert f"`{hashlib.sha256(SHIPPED.read_bytes()).hexdigest()}`" in PAGE
    layers = foreign_layers(safetensors.load_file(SHIPPED))
    assert len(layers) == 7 * 30
    weights = sum(layer.out_features * layer.in_features for layer in layers.values())
    assert round(sum(layer.stored_bits for layer in layers.values()) / weights, 3) == 1.0


@pytest.mark.slow
@pytest.mark.skipif(not BASE.is_file(), reason="needs the model that make demo fetches")
def test_it_writes_what_its_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", SHIPPED, "--base", BASE, "--output", tmp_path / "c") == 0
    assert run("export", tmp_path / "c", "--to", "onnx", "--output", tmp_path / "b") == 0
    capsys.readouterr()
    prompt = "Give me three tips for staying healthy."
    assert prompt in PAGE
    assert run("generate", tmp_path / "b", "--chat", "--prompt", prompt, "--repetition-penalty", 1.1, "-n", 26) == 0
    text = capsys.readouterr().out.strip()
    assert len(text) > 40
    assert text in PAGE
