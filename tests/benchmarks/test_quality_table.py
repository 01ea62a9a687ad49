# SPDX-License-Identifier: Apache-2.0
"""The quality table: one line for equal settings, means and spreads over seeds, the page up to date."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import quality_table
from benchmarks.figures import FOLDER


def row(**changes: Any) -> dict[str, Any]:
    plain = {"model": "m", "recipe": "default", "schedule": "reduced", "n_windows": 32, "target_bpw": 1.0, "seed": 0}
    return {**plain, "true_bpw": 0.95, "ppl": 10.0, "ppl_dense": 5.0, "kl": 1.0, **changes}


def test_seeds_are_one_line_with_their_spread() -> None:
    rows = [row(ppl=99.0), row(ppl=10.0), row(seed=1, ppl=14.0), row(recipe="official", ppl=20.0, n_windows=16)]
    lines = quality_table.table(rows).splitlines()
    assert len(lines) == 4  # head, rule, one line, the dense model; other window counts are left out
    assert lines[2].startswith("| m | default reduced | 1.0, 0.950 | 2 | 12.00 (10.00–14.00) |")
    assert lines[3].startswith("| m | dense | 16 |  | 5.00 |")


def test_the_page_holds_the_table_of_the_figures() -> None:
    rows = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"]
    assert quality_table.table(rows) in quality_table._PAGE.read_text(encoding="utf-8")
