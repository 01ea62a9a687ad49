# SPDX-License-Identifier: Apache-2.0
"""The quality tables: one line for equal settings, means, spreads and ratios over seeds, the page up to date."""

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
    lines = quality_table.tables(rows).splitlines()
    assert lines[0] == "### m"
    assert len(lines) == 6  # title, blank, head, rule, one line, the dense model; other window counts are left out
    assert lines[4].startswith("| default | 1 | 0.950 | 2 |  | 12.00 (10.00–14.00) |")
    assert lines[5].startswith("| dense | 16 | 16 |  |  | 5.00 |")


def test_times_are_of_runs_alone_and_large_perplexities_short() -> None:
    rows = [row(seconds=100.0, alone=True), row(seed=1, seconds=300.0), row(recipe="rtn", schedule="", ppl=3.1e11)]
    lines = quality_table.tables(rows).splitlines()
    assert lines[4].split("|")[-3].strip() == "100"
    assert lines[5].split("|")[6].strip() == "3.1e+11"


def test_recipes_come_first_and_presets_and_rounding_last() -> None:
    rows = [
        row(recipe="rtn", schedule="", target_bpw=3.0, dense_mb=300.0),
        row(recipe="quick", schedule=""),
        row(schedule="", ppl=8.0),
        row(target_bpw=0.55, ppl=30.0),
        row(recipe="official", target_bpw=0.55, ppl=60.0),
        row(recipe="official", ppl=20.0),
        row(recipe="official", ppl=30.0, seed=1),
        row(),
    ]
    lines = quality_table.tables(rows).splitlines()[4:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "official",
        "default",
        "official",
        "default",
        "default, full schedule",
        "quick",
        "round-to-nearest, 3 bits",
        "dense",
    ]
    over = [line.split("|")[5].strip() for line in lines]
    assert over == ["", "0.500", "", "0.500", "", "", "", ""]  # over the seeds that both have
    assert lines[-1].split("|")[-4].strip() == "300.0"


def test_changed_settings_are_a_table_of_their_own() -> None:
    rows = [
        row(ppl=10.0),
        row(ppl=20.0, seed=1),
        row(ppl=12.0, schedule="reduced rank_depth=0 rank_types=false"),
        row(ppl=9.0, schedule="kd_epochs=4", recipe="quick"),
        row(ppl=7.0, model="a"),
    ]
    first, second, third = quality_table.tables(rows).split("\n\n", 2)[0], *quality_table.tables(rows).split("### m")
    assert first == "### a"
    assert "one group of settings" not in second
    lines = third.split("changed at a time:")[1].strip().splitlines()
    assert lines[2].startswith("| default reduced: `rank_depth=0 rank_types=false` | 1 | 1 | 1.200 | 12.00 |")
    assert lines[3].startswith("| quick: `kd_epochs=4` | 1 | 1 |  | 9.00 |")


def test_the_pages_hold_the_tables_of_the_figures() -> None:
    rows = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"]
    for page, text in quality_table.pages(rows).items():
        assert page.read_text(encoding="utf-8") == text, "run python -m benchmarks.quality_table --write"


def test_llama_types_and_tables_in_few_bits_have_lines_of_their_own() -> None:
    rows = [
        row(recipe="max", schedule="", ppl=8.0),
        row(recipe="max", schedule="", ppl=8.5, embedding="int4"),
        row(recipe="max", schedule="text=a.txt text=corpus", ppl=7.0),
        row(recipe="llama.cpp", schedule="IQ2_XXS", target_bpw=2.1, ppl=30.0),
    ]
    names = [line.split("|")[1].strip() for line in quality_table.tables(rows).splitlines()[4:]]
    assert names == ["max", "max, int4 tables", "max, text: a.txt, corpus", "llama.cpp IQ2_XXS", "dense"]
