# SPDX-License-Identifier: Apache-2.0
"""The plot of perplexity against file size: which rows become which points, and the same file from the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality_plot import draw, panels
from tests.benchmarks.test_quality_table import row


def rows() -> list[dict[str, Any]]:
    found = [
        row(model=model, recipe=recipe, target_bpw=bpw, seed=seed, ppl=base / bpw + seed, file_mb=50 + 10 * bpw)
        for model in ("small", "large")
        for recipe, base in (("official", 400.0), ("default", 60.0))
        for bpw in (2.0, 0.55, 1.0)
        for seed in ((0, 1, 2) if bpw == 1.0 else (0,))
    ]
    found.append(row(model="small", schedule="", ppl=40.0, file_mb=60.0, dense_mb=270.0))
    found += [
        row(model="small", recipe="rtn", schedule="", target_bpw=bits, ppl=25.0 * 8 / bits, file_mb=60 + 10 * bits)
        for bits in (4.0, 3.0, 2.0)
    ]
    found.append(row(model="small", schedule="reduced rank_depth=0", ppl=1.0, file_mb=1.0))
    found.append(row(model="small", recipe="quick", schedule="", ppl=1.0, file_mb=1.0))
    found.append(row(model="small", n_windows=4, ppl=1.0, file_mb=1.0))
    found.append(row(model="small", recipe="max", schedule="", ppl=30.0, file_mb=40.0, embedding="int4"))
    found += [
        row(model="small", recipe="llama.cpp", schedule=kind, target_bpw=bpw, ppl=90 / bpw, file_mb=40 + bpw)
        for kind, bpw in (("Q2_K", 2.6), ("IQ2_XXS", 2.1))
    ]
    return found


def test_rows_become_lines_by_rising_size() -> None:
    found = panels(rows())
    assert list(found) == ["large", "small"]
    lines = {series.label: series.points for series in found["small"]}
    assert set(lines) == {
        "official",
        "default",
        "default, full schedule",
        "round-to-nearest",
        "uncompressed, 16 bits",
        "max, int4 tables",
        "llama.cpp, importance matrix",
    }
    assert [point[0] for point in lines["llama.cpp, importance matrix"]] == ["IQ2_XXS", "Q2_K"]
    assert [point[0] for point in lines["default"]] == ["0.55", "1", "2"]
    assert lines["default"][1] == ("1", 60.0, 61.0, 60.0, 62.0)
    assert [point[:2] for point in lines["round-to-nearest"]] == [("2", 80.0), ("3", 90.0), ("4", 100.0)]
    assert lines["uncompressed, 16 bits"] == [("16", 270.0, 5.0, 5.0, 5.0)]
    assert lines["default, full schedule"][0][2] == 40.0
    assert {series.label for series in found["large"]} == {"official", "default"}  # no size of the dense file there


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        draw(rows(), file)
    text = files[0].read_text()
    assert text == files[1].read_text()
    for word in ("small", "large", "file, MB", "default, full schedule", "round-to-nearest", "uncompressed, 16 bits"):
        assert word in text
    draw(rows(), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5000
