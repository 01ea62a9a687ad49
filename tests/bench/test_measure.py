# SPDX-License-Identifier: Apache-2.0
"""Measuring a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanoquant_edge.bench import BenchOptions, measure_bundle
from nanoquant_edge.errors import NqEdgeError

QUICK = BenchOptions(lengths=(3, 7), new_tokens=4, repetitions=2, threads=1)


def test_a_measurement_says_what_was_measured(tiny_bundle: Path) -> None:
    report = measure_bundle(tiny_bundle, QUICK)
    assert [timing["prompt"] for timing in report["timings"]] == [3, 7]
    for timing in report["timings"]:
        for key in ("prefill_tps", "ttft_ms", "decode_tps"):
            middle, low, high = timing[key]
            assert 0 < low <= middle <= high
        slowest = timing["prefill_tps"][1] * timing["ttft_ms"][2]
        assert slowest == pytest.approx(timing["prompt"] * 1e3)
    memory = report["memory_mb"]
    assert 0 < memory["loaded"] <= memory["peak"] and memory["steady"] <= memory["peak"]
    assert report["kernel"] == "nanoquant" and report["load_s"] > 0
    assert report["file_mb"] == pytest.approx(
        sum(path.stat().st_size for path in tiny_bundle.glob("[!.]*")) / 1e6, rel=0.1
    )
    assert "energy" not in report
    json.dumps(report)


@pytest.mark.parametrize("changes", [{"lengths": ()}, {"lengths": (0,)}, {"new_tokens": 0}, {"repetitions": 0}])
def test_empty_measurements_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(NqEdgeError, match="above 0"):
        BenchOptions(**changes)


def test_a_prompt_beyond_the_context_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="do not fit the model's context") as caught:
        measure_bundle(tiny_bundle, BenchOptions(lengths=(10**6,)))
    assert caught.value.code == "NQ-OPTION"
