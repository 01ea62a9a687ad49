# SPDX-License-Identifier: Apache-2.0
"""Figures of the device guide: the table is the one of forecast.json, quality rows are those of quality.json."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.forecast import FITTED, measured_rows, published_rows, table_of
from nanoquant_edge.devices import quality

ROOT = Path(__file__).parents[2]


def test_the_guides_table_is_the_figures() -> None:
    rows = json.loads((ROOT / "docs/figures/forecast.json").read_text())["rows"]
    assert table_of(rows) in (ROOT / "docs/DEVICES.md").read_text()
    assert {"measured", "other kernels", "other format"} <= {row["kind"] for row in rows}


def test_our_own_kernels_are_forecast_closely() -> None:
    rows = [
        row for row in measured_rows(ROOT / "docs/figures") if row["device"] == "h200" and row["kind"] == "measured"
    ]
    assert len(rows) >= 4 and len(FITTED) < len(rows)
    for row in rows:  # faster kernels ask for new constants in devices/gpu_time.py before they get that far
        assert 0.6 < row["predicted_over_known"] < 1.6, row


def test_published_figures_lie_in_the_forecasts_neighbourhood() -> None:
    for row in published_rows():
        if row["device"].startswith(("rtx-3050", "jetson")):
            assert 0.7 < row["predicted_over_known"] < 1.9, row


def test_measured_quality_is_from_the_figures() -> None:
    known = json.loads((ROOT / "docs/figures/quality.json").read_text())["rows"]
    for row in json.loads(Path(quality.__file__).with_name("quality.json").read_text())["rows"]:
        assert row["kind"] in ("measured", "published") and row["source"]
        if row["kind"] == "measured":
            found = [r for r in known if r["target_bpw"] == row["bpw"] and abs(r["ppl"] - row["ppl"]) < 0.01]
            assert found and found[0]["n_windows"] == 32, row
