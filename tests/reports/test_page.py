# SPDX-License-Identifier: Apache-2.0
"""Both forms of a page: nothing from outside, nothing unescaped, nothing half-written."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.reports.page import Figure, Page, Paragraph, Part, Passage, Section, Span, Table, save_page
from nanoquant_edge.reports.plots import Bars, Curve, bar_plot, curve_plot

HOSTILE = '<script src="https://x.example/a.js">$\\frac{</script>\x1b[2J | `code` **bold**'


def _page(text: str) -> Page:
    parts: list[Part] = [
        Paragraph(text),
        Table(("name", text), [(text, "1\n2")], ["pass"]),
        Figure(curve_plot([Curve(text, [0, 1], [1, 2])], x_title=text, y_title="y"), text),
        Figure(bar_plot([text], [Bars("MB", [3.0])], x_title="MB"), text),
        Passage(text, [Span(text, 0.5, True, text), Span("\n  two", 0.0, False, "")]),
    ]
    return Page(text, text, "pass", [Section(text, parts)], text)


class _Seen(HTMLParser):
    """Tags and addresses of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_shows_hostile_names_and_asks_nobody(tmp_path: Path) -> None:
    text = save_page(_page(HOSTILE), tmp_path / "page.html").read_text(encoding="utf-8")
    seen = _Seen()
    seen.feed(text)
    assert "script" not in seen.tags and "link" not in seen.tags and "svg" in seen.tags
    assert all(address.startswith("#") for address in seen.addresses)
    assert not re.search(r"url\((?!#)", text)
    assert seen.text.count("https://x.example/a.js") >= 8, "shown as text in every part"
    assert "\x1b" not in text
    assert "default-src 'none'" in text


def test_pictures_follow_the_colours_of_the_page() -> None:
    svg = curve_plot([Curve("a", [0, 1], [1e-6, 1e-3]), Curve("b", [0], [0.5], dots=True)], x_title="x", y_title="y",
                     logarithmic=True, limit=1e-2)  # fmt: skip
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "var(--series-a)" in svg and "currentColor" in svg and "#0102" not in svg
    assert "1e-06" in svg, "places on a logarithmic axis are plain numbers"


@pytest.mark.parametrize("values", [[float("nan")], [], [0.0]])
def test_nothing_to_draw_is_no_picture(values: list[float]) -> None:
    assert curve_plot([Curve("a", range(len(values)), values)], x_title="x", y_title="y", logarithmic=True) == ""


def test_markdown_keeps_tables_whole(tmp_path: Path) -> None:
    lines = save_page(_page(HOSTILE), tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert not any("<script" in line.replace("\\<", "") for line in lines)


def test_an_output_that_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    for name, code in (("page.pdf", "NQ-OPTION"), ("absent/page.html", "NQ-OUTPUT")):
        with pytest.raises(NqEdgeError) as caught:
            save_page(_page("x"), tmp_path / name)
        assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_a_page_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    save_page(_page("new"), target)
    assert "new" in target.read_text() and [path.name for path in tmp_path.iterdir()] == ["page.html"]
