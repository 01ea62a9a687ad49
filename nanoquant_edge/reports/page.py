# SPDX-License-Identifier: Apache-2.0
"""A page as its parts, and its two forms: one HTML file without outside requests, and Markdown.

What a page shows comes from files of strangers (names of layers, texts of a tokenizer). Everything but pictures is
escaped, and pictures are drawn by this package alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..errors import NqEdgeError, printable
from ..system.files import write_text

__all__ = ["Figure", "Page", "Paragraph", "Passage", "Section", "Span", "Table", "check_report_path", "save_page"]

_TEMPLATES = Path(__file__).with_name("templates")
_FORMS = {".html": "html", ".md": "markdown"}
#: What Markdown would take for markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#|~])")


@dataclass(frozen=True)
class Paragraph:
    """Plain words."""

    text: str
    kind: str = field(default="paragraph", init=False)


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings; `states` may give a row the colour of an outcome ("pass", "fail", "skipped")."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    states: Sequence[str] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """A picture drawn by `plots`, as an SVG element, and what it shows in words."""

    svg: str
    caption: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Span:
    """One token's text: how far it differs, 0 to 1, and whether the likeliest next token is another one."""

    text: str
    heat: float
    differs: bool
    title: str


@dataclass(frozen=True)
class Passage:
    """A piece of text with its tokens marked."""

    heading: str
    spans: Sequence[Span]
    kind: str = field(default="passage", init=False)


Part = Paragraph | Table | Figure | Passage


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: its name.
        verdict: the outcome in one sentence.
        state: "pass", "fail", "incomplete" or "" for a page that judges nothing.
        sections: in order.
        footer: what made it, and when.
    """

    title: str
    verdict: str
    state: str
    sections: Sequence[Section]
    footer: str = ""


def check_report_path(path: str | Path) -> Path:
    """See that a report can be written there, before anything is computed.

    Args:
        path: a file that ends in .html or .md; one that exists is replaced.

    Raises:
        NqEdgeError: NQ-OPTION for another ending, NQ-OUTPUT when its folder does not exist or it is a folder.

    Example:
        >>> check_report_path("report.html").name
        'report.html'
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMS:
        raise NqEdgeError("NQ-OPTION", f"{path} does not end in .html or .md.", "Name the report report.html.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise NqEdgeError("NQ-OUTPUT", f"{path} {what}.", "Name a file in a folder that is there.")
    return path


def save_page(page: Page, path: str | Path) -> Path:
    """Write a page: whole, or not at all.

    Args:
        page: what to write.
        path: a file that ends in .html or .md.

    Raises:
        NqEdgeError: as `check_report_path`, and NQ-OUTPUT when it cannot be written.

    Example:
        >>> page = Page("Report", "All is well.", "pass", [Section("Figures", [Paragraph("None.")])])
        >>> save_page(page, "report.md").read_text().splitlines()[0]
        '# Report'
    """
    path = check_report_path(path)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=path.suffix.lower() == ".html",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["marked"] = _marked
    template = environment.get_template(f"page.{_FORMS[path.suffix.lower()]}.j2")
    write_text(path, template.render(page=page))
    return path


def _plain(text: Any) -> str:
    """No control characters, which no page shows alike."""
    return printable(str(text))


def _marked(text: Any) -> str:
    """Text that Markdown takes as it is."""
    return _MARKUP.sub(r"\\\1", printable(str(text)).replace("\n", " "))
