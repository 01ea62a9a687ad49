# SPDX-License-Identifier: Apache-2.0
"""The report's status and forms, and the text that windows are cut from."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.validation import Report, Step
from nanoquant_edge.validation.text import cut_windows, join_rows, read_text

NAMES = ("layers", "logits", "greedy", "perplexity")


def _report(*statuses: str) -> Report:
    steps = [
        Step(name, status, {"count": 3, "error": math.nan}, {"error": 0.5}, "a note")
        for name, status in zip(NAMES, statuses, strict=False)
    ]
    named = {step.name: step for step in steps}
    return Report("b", "float32", "nanoquant", "torch", "text", 2, 8, named, "model.layers.0", 1.0)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (("pass", "pass"), "pass"),
        (("pass", "skipped"), "incomplete"),
        (("skipped", "fail"), "fail"),
        ((), "fail"),
    ],
)
def test_status(statuses: tuple[str, ...], status: str) -> None:
    report = _report(*statuses)
    assert report.status == status
    assert report.passed == (status == "pass")


def test_json_names_the_steps_and_has_no_nan() -> None:
    entry = json.loads(json.dumps(_report("pass", "skipped").to_dict(), allow_nan=False))
    assert entry["steps"]["layers"] == {
        "name": "layers", "status": "pass", "figures": {"count": 3, "error": None}, "limits": {"error": 0.5},
        "note": "a note",
    }  # fmt: skip
    assert entry["status"] == "incomplete"


def test_json_keeps_the_numbers_of_earlier_versions() -> None:
    entry = _report("pass", "skipped", "pass", "fail").to_dict()
    assert [(rung["number"], rung["name"], rung["status"]) for rung in entry["rungs"]] == [
        (3, "layer and block outputs", "pass"), (4, "logits", "skipped"), (5, "greedy tokens", "pass"),
        (6, "perplexity", "fail"),
    ]  # fmt: skip
    assert entry["rungs"][0]["figures"] == {"count": 3, "error": None}


def test_table() -> None:
    console = Console(file=io.StringIO(), width=120)
    _report("pass", "skipped").print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "layers",
        "layer and block outputs",
        "skipped",
        "error nan (0.5)",
        "a note",
        "first diverging: model.layers.0",
        "incomplete",
    ):
        assert part in text


def test_table_prints_no_control_sequences() -> None:
    console = Console(file=io.StringIO(), width=120)
    step = Step("layers", "fail", note="[bold]layer\x1b[2J")
    Report("b", "float32", "nanoquant", "torch", "t\x1b", 1, 2, {"layers": step}, "l\x9b", 0).print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]layer?[2J" in text
    assert "\x1b" not in text
    assert "\x9b" not in text


def test_rows_are_joined_as_the_data_set_gives_them() -> None:
    assert join_rows(" \n = T = \n \n a b \n") == "\n\n = T = \n\n\n\n\n a b \n"
    assert join_rows("no end") == "no end\n"
    assert join_rows("") == ""


def test_windows(tmp_path: Path) -> None:
    np.testing.assert_array_equal(cut_windows(np.arange(9), 2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]])
    with pytest.raises(NqEdgeError, match="has 7 tokens; 2 windows of 4 need 8") as caught:
        cut_windows(np.arange(7), 2, 4)
    assert caught.value.code == "NQ-TEXT"
    with (tmp_path / "big").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(NqEdgeError, match="at most"):
        read_text(tmp_path / "big")
