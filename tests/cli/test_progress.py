# SPDX-License-Identifier: Apache-2.0
"""Progress in a log: silent for quick steps, a line for each kind of work, and never silent for long."""

from __future__ import annotations

import pytest

from nanoquant_edge.cli.progress import LogLines, shown_progress


class Log:
    """Lines that are written, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now, self.written = 0.0, list[str]()
        self.lines = LogLines("compress", clock=lambda: self.now, write=self.written.append)

    def at(self, now: float, fraction: float | None = None, text: str = "") -> list[str]:
        """What is written at a moment, with news or without."""
        self.now, before = now, len(self.written)
        self.lines.tick() if fraction is None else self.lines(fraction, text)
        return self.written[before:]


def test_a_quick_step_says_nothing() -> None:
    log = Log()
    assert log.at(0.0, 0.0, "reading") == log.at(1.0, 0.5, "writing") == log.at(1.9, 1.0, "done") == []


def test_a_line_for_each_kind_of_work_with_the_time_left() -> None:
    log = Log()
    assert log.at(2.5, 0.04, "block 1: tuning") == ["compress   4 % after 2 s: block 1: tuning"]
    assert log.at(4.0, 0.1, "block 2: tuning") == []
    assert log.at(10.0, 0.5, "distilling scales") == ["compress  50 % after 10 s, about 10 s left: distilling scales"]
    assert log.at(20.0, 1.0, "done") == ["compress 100 % after 20 s: done"]


def test_a_step_that_says_nothing_for_long_is_seen_to_go_on() -> None:
    log = Log()
    log.at(0.0, 0.84, "distilling scales")
    said = [line for second in range(1, 62) for line in log.at(float(second))]
    assert len(said) == 4 and all("distilling scales" in line for line in said)
    assert said[0].startswith("compress  84 % after 2 s") and said[-1].startswith("compress  84 % after 47 s")


def test_names_from_files_do_not_reach_the_log_as_commands() -> None:
    assert Log().at(3.0, 0.5, "writing \x1b[2Jx")[0].endswith("writing ?[2Jx")


def test_a_step_is_visible_in_a_real_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanoquant_edge.cli.progress._QUIET_SECONDS", 0.0)
    with shown_progress("import") as progress:
        progress(0.5, "reading")
    with shown_progress("import", hidden=True) as progress:
        progress(0.5, "hidden")
    said = capsys.readouterr().err
    assert said.startswith("import  50 % after 0 s") and "hidden" not in said
