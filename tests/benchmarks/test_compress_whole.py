# SPDX-License-Identifier: Apache-2.0
"""Whole compressions on random weights: the folder, the time of a whole model from some blocks, the arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import compress_whole
from benchmarks.compress_whole import predicted_mb, whole_seconds
from nanoquant_edge.compression import Recipe


def test_stages_that_walk_through_the_blocks_take_longer_with_more_of_them() -> None:
    stages = {"loading and checks": 3.0, "importances": 2.0, "blocks": 10.0, "LB-ADMM": 8.0}
    assert whole_seconds(stages, 4, 4, 16.0) == pytest.approx(16.0)
    assert whole_seconds(stages, 4, 12, 16.0) == pytest.approx(3 + 1 + 3 * 12)  # a second lies outside the stages


def test_a_1_5b_model_fits_24_gb_and_an_8b_model_40_gb_by_arithmetic() -> None:
    balanced = Recipe.preset("balanced")
    peaks = predicted_mb("Qwen2.5-1.5B", 28, balanced, bpw=1.0, streamed=False)
    assert max(peaks.values()) < 24_000
    assert max(predicted_mb("Llama-3-8B", 32, balanced, bpw=1.0, streamed=True).values()) < 40_000
    plain = predicted_mb("Qwen2.5-1.5B", 28, Recipe.preset("official"), bpw=1.0, streamed=False)
    assert plain["curvature"] == 0


@pytest.mark.parametrize("options", [[], ["--stream-weights"]], ids=["resident", "streamed"])
def test_a_row_says_what_it_took(tmp_path: Path, options: list[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    short = ("windows=2", "window_length=16", "admm_steps=1", "fp_epochs=0", "ste_epochs=0", "kd_epochs=0")
    changes = [part for change in short for part in ("--set", change)]
    places = ["--text", str(text), "--device", "cpu", "--append", "--figures", str(tmp_path)]
    asked = ["--shape", "tiny", "--blocks", "1", "--recipe", "balanced", *changes, *places, *options]
    result = CliRunner().invoke(compress_whole.main, asked)
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "compress_whole.json").read_text())["rows"]
    assert row["streamed"] is bool(options) and row["left_out"] == []
    assert row["whole_seconds"] >= row["seconds"] > 0 and row["peak_mb"] > 0
