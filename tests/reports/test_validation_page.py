# SPDX-License-Identifier: Apache-2.0
"""The page of a validation: what it says of a good bundle, of a spoiled one, and of two."""

from __future__ import annotations

import builtins
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from nanoquant_edge.cli.bench import command as bench
from nanoquant_edge.cli.validate import command
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.reports.page import Figure, Page, Passage, Table
from nanoquant_edge.reports.validation import Subject, validation_page
from nanoquant_edge.validation import Report, validate
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    from nanoquant_edge.exporters.onnx import export_onnx

    folder = tmp_path_factory.mktemp("pages")
    checkpoint = tiny_checkpoint(folder / "model", num_hidden_layers=3)
    export_onnx(checkpoint, folder / "bundle")
    report = validate(folder / "bundle", checkpoint, threads=1, windows=2, window_length=64)
    return Subject(Bundle.open(folder / "bundle"), report, checkpoint), folder


def _section(page: Page, title: str) -> Any:
    return next(section for section in page.sections if section.title.startswith(title))


def test_a_short_run_says_what_is_not_proved(validated: tuple[Subject, Path]) -> None:
    page = validation_page(validated[0])
    assert page.state == "incomplete"
    assert "not every step could be proved" in page.verdict
    steps = next(part for part in _section(page, "Steps").parts if isinstance(part, Table))
    assert [row[1] for row in steps.rows] == ["pass", "skipped", "pass", "skipped"] == list(steps.states)
    layers = _section(page, "Errors of layers").parts
    assert isinstance(layers[0], Figure) and "Relative error" in layers[0].caption
    assert len(validated[0].report.details.inner) == 3 * 7 + 3  # type: ignore[union-attr]
    assert _section(page, "Rates by layer").parts and _section(page, "Versions").parts


def test_the_worst_passage_comes_first(validated: tuple[Subject, Path]) -> None:
    subject = validated[0]
    details = subject.report.details
    assert details is not None
    kl, same = np.zeros_like(details.kl), np.ones_like(details.same)
    kl[1, 50], same[1, 50] = 2.5, False
    kl[0, 3] = np.nan
    page = validation_page(replace(subject, report=replace(subject.report, details=replace(details, kl=kl, same=same))))
    first, second = [part for part in _section(page, "Worst passages").parts if isinstance(part, Passage)]
    assert first.heading.startswith("Window 1, tokens 1 to 48"), "what is no number is worst of all"
    assert [place for place, span in enumerate(first.spans) if span.heat > 0] == [3]
    assert second.heading.startswith("Window 2, tokens 1 to 48")  # 50 lies in the rest that no whole passage covers
    assert not any(span.differs for span in second.spans)


def test_two_bundles_stand_side_by_side(validated: tuple[Subject, Path]) -> None:
    subject = validated[0]
    shutil.copytree(subject.bundle.folder, validated[1] / "second")
    other = replace(subject, bundle=Bundle.open(validated[1] / "second"))
    page = validation_page(subject, other)
    assert page.title == "Validation of bundle beside second"
    assert sum(section.title.startswith("Worst passages of") for section in page.sections) == 2


def test_the_verb_writes_both_forms(validated: tuple[Subject, Path], tmp_path: Path) -> None:
    folder = validated[1]
    CliRunner().invoke(
        bench, [str(folder / "bundle"), "--lengths", "3", "-n", "2", "-r", "1", "-t", "1", "--record"],
        catch_exceptions=False,
    )  # fmt: skip
    arguments = [str(folder / "bundle"), "--against", str(folder / "model"), "--windows", "1", "--length", "32"]
    arguments += ["--report", str(tmp_path / "a.html"), "--report", str(tmp_path / "a.md"), "-t", "1"]
    done = CliRunner().invoke(command, [*arguments, "--compare", str(folder / "bundle")], catch_exceptions=False)
    assert done.exit_code == 1, "one short window proves nothing"
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 8 and "decode, tokens/s, prompt of 3" in page
    assert "decode, tokens/s, prompt of 3" in (tmp_path / "a.md").read_text(encoding="utf-8")


def test_the_verb_refuses_before_it_computes(validated: tuple[Subject, Path], tmp_path: Path) -> None:
    from tests.command import run

    folder = validated[1]
    assert run("validate", folder / "bundle", "--against", folder / "model", "--report", tmp_path / "a.pdf") == 2
    assert run("validate", folder / "bundle", "--against", folder / "model", "--compare", folder / "bundle") == 2


def test_without_matplotlib_the_page_has_words(
    validated: tuple[Subject, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    page = validation_page(validated[0])
    parts = [part for section in page.sections for part in section.parts]
    assert not any(isinstance(part, Figure) for part in parts)
    assert any("matplotlib" in getattr(part, "text", "") for part in parts)


def test_the_json_form_has_no_details(validated: tuple[Subject, Path]) -> None:
    report: Report = validated[0].report
    assert "details" not in report.to_dict() and report.details is not None
