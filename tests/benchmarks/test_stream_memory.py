# SPDX-License-Identifier: Apache-2.0
"""The memory benchmark: its arithmetic, and on a tiny model the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.stream_memory import main, predicted


def test_the_prediction_counts_blocks() -> None:
    streamed, resident = (predicted(way, 24, 1024, 2816, 2048) for way in ("streamed", "resident"))
    block = 4 * (4 * 1024**2 + 3 * 1024 * 2816) / 1e6
    assert resident["blocks"] - streamed["blocks"] == pytest.approx(24 * block, abs=1)
    assert resident["distillation"] - streamed["distillation"] == pytest.approx(47 * block, abs=1)
    assert 5 * block < streamed["blocks"] < 8 * block


@pytest.mark.slow
def test_both_ways_are_measured(tmp_path: Path) -> None:
    sizes = ["--blocks", "2", "--hidden", "64", "--wide", "96", "--vocab", "320"]
    shown = CliRunner().invoke(main, [*sizes, "--append", "--figures", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    rows = json.loads((tmp_path / "stream_memory.json").read_text())["rows"]
    assert [row["weights"] for row in rows] == ["streamed", "resident"]
    assert all(row["peak_mb"] >= row["stages_mb"]["blocks"] >= row["stages_mb"]["importances"] >= 0 for row in rows)
