# SPDX-License-Identifier: Apache-2.0
"""Variants of tuning from end to end: the checkpoint as it is first, then each variant on text of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import end_to_end, quality_measure
from nanoquant_edge.compression import compress
from tests.compression.support import dense_folder, short_recipe
from tests.tiny import TEXT


def test_variants_begin_with_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_measure.corpus_windows, "__defaults__", (64,))
    monkeypatch.setattr(end_to_end.Recipe, "preset", lambda name, **changes: short_recipe(name=name, **changes))
    for name in quality_measure.CORPORA.values():
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    model = dense_folder(tmp_path / "m")
    compress(model, tmp_path / "c", recipe=short_recipe(), calibration=tmp_path / "text.txt", device="cpu")
    variants = [json.dumps(variant) for variant in ({"tokens": 200}, {"tokens": 200, "lr": 0.1, "chat": 0.5})]
    options = [part for variant in variants for part in ("--variant", variant)]
    places = ["--texts", str(tmp_path), "--text", str(tmp_path / "text.txt"), "--windows", "2", "--prompts", "2"]
    result = CliRunner().invoke(end_to_end.main, [str(model), str(tmp_path / "c"), *places, *options])
    assert result.exit_code == 0, result.output
    dense, plain, first, second = map(json.loads, result.output.strip().splitlines()[-4:])
    assert set(dense) == {"dense"}
    assert "loss" not in plain and plain["variant"] == "{}"
    assert len({plain["ppl"], first["ppl"], second["ppl"]}) == 3
