# SPDX-License-Identifier: Apache-2.0
"""`nq-edge bench` on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from nanoquant_edge.cli.bench import command, merged
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.processors import usable_processors


def test_the_verb_prints_and_writes_json(tiny_bundle: Path) -> None:
    arguments = [str(tiny_bundle), "--lengths", "3,7", "-n", "4", "-r", "2", "-t", "1"]
    shown = CliRunner().invoke(command, [*arguments, "--profile"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "floor" in shown.output and "NanoQuantAttention" in shown.output and "nanoquant (" in shown.output
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["isa"] and found["floor"]["share"] > 0 and found["profile"]["nodes"] > 10
    assert found["floor"]["context"] == 9


def test_several_texts_at_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(tiny_bundle), "--lengths", "3", "-n", "4", "-r", "2", "-t", "1", "--batch", "1,3"]
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [entry["texts"] for entry in found["batches"]] == [1, 3]
    assert all(entry["decode_tps"][1] <= entry["decode_tps"][0] <= entry["decode_tps"][2] for entry in found["batches"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "texts at once" in shown and "█" in shown
    for wrong in ("0", "1,x", "9999"):
        with pytest.raises(NqEdgeError) as caught:
            CliRunner().invoke(command, [*arguments[:-1], wrong], catch_exceptions=False)
        assert caught.value.code == "NQ-OPTION"


def test_threads_are_those_that_ran(tiny_bundle: Path) -> None:
    arguments = [str(tiny_bundle), "--lengths", "3", "-n", "2", "-r", "1", "-t", "999", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    usable = usable_processors()
    assert json.loads(done.stdout)["threads"] == json.loads(done.stdout)["floor"]["rates"]["threads"] == usable
    assert f"so {usable} threads run" in done.stderr


def test_power_says_what_it_read(tiny_bundle: Path) -> None:
    arguments = [str(tiny_bundle), "--lengths", "3", "-n", "2", "-r", "1", "-t", "1", "--power"]
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    energy = found["energy"]
    assert energy["seconds"] > 0 and (energy["joules"] is not None or energy["absent"])
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "energy" in shown.output


def test_two_bundles_are_compared(tiny_bundle: Path) -> None:
    arguments = [
        str(tiny_bundle),
        "--against",
        str(tiny_bundle),
        "--lengths",
        "3",
        "-n",
        "2",
        "-r",
        "1",
        "-t",
        "1",
        "--json",
    ]
    found = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    assert len(found["bundles"]) == 2 and found["ratios"][0]["prompt"] == 3
    assert found["ratios"][0]["decode_tps"] > 0


def test_rounds_are_merged() -> None:
    def report(scale: float) -> dict[str, object]:
        figures = {key: [2 * scale, scale, 3 * scale] for key in ("prefill_tps", "ttft_ms", "decode_tps")}
        return {"bundle": "b", "timings": [{"prompt": 5, **figures}]}

    (timing,) = merged([report(1.0), report(3.0)])["timings"]
    assert timing["decode_tps"] == [4.0, 1.0, 9.0]


@pytest.mark.parametrize("lengths", ["", "a", "3,,4"])
def test_bad_lengths_are_refused(lengths: str, tiny_bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="no list of whole numbers"):
        CliRunner().invoke(command, [str(tiny_bundle), "--lengths", lengths], catch_exceptions=False)
