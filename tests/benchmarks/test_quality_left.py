# SPDX-License-Identifier: Apache-2.0
"""What is left: accuracy over chance, the longest recipe of each rate, and cells for what was measured alone."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality_left import left_table
from benchmarks.quality_rows import share_kept
from tests.benchmarks.test_quality_table import row


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in left_table(rows).splitlines()[2:]]


def test_the_share_kept_is_over_chance_where_the_dense_model_is_above_it() -> None:
    dense = {"arc_easy_dense": 0.45, "winogrande_dense": 0.52, "lambada_dense": 0.4}
    assert share_kept({"arc_easy": 0.35, "winogrande": 0.55, "lambada": 0.1, **dense}) == pytest.approx(0.375)
    assert share_kept({"arc_easy": 0.2, **dense}) == 0
    assert share_kept({"winogrande": 0.5, **dense}) is None
    assert share_kept({"piqa": 0.6}, {"piqa": 0.7}) == 0.5


def test_a_rate_is_told_by_its_longest_recipe() -> None:
    rows = [
        row(ppl=10.0, file_mb=50.0, dense_mb=200.0, ppl2=30.0, ppl2_dense=6.0),
        row(recipe="full", schedule="", ppl=8.0, file_mb=50.0),
        row(recipe="full", schedule="", ppl=9.0, file_mb=50.0, seed=1),
        row(recipe="official", schedule="", ppl=7.0, file_mb=50.0),
        row(target_bpw=2.0, ppl=6.0, ppl2=9.0, file_mb=60.0),
        row(target_bpw=0.8, ppl=20.0, file_mb=40.0),
    ]
    dense, two, one = cells(rows)
    assert dense[:6] == ["m", "16", "", "200", "1", "1"]
    assert two[:6] == ["m", "2", "default", "60", "1.20", "1.50"]
    assert one[:6] == ["m", "1", "full", "50", "1.70", ""]


def test_use_is_told_where_it_was_measured() -> None:
    asked = {"ends": 0.4, "repeats": 0.25, "answer_loss": 1.0, "right": 0.1}
    rows = [
        row(schedule="reduced chat_share=0.5", file_mb=1.0, code=0.41, code_dense=0.5, ends_dense=0.9, **asked),
        row(schedule="reduced chat_share=0.0", file_mb=1.0, ppl=1.0),
    ]
    dense, one = cells(rows)
    assert dense[7:] == ["50.0 %", "", "90 %", "", ""]
    assert one[2] == "balanced" and one[7:] == ["41.0 %", "1.00", "40 %", "25 %", "10 %"]
