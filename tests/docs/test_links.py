# SPDX-License-Identifier: Apache-2.0
"""Links and anchors of all Markdown pages resolve, and what pages and sources name in words exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Folders that are no part of the repository, beside hidden ones.
SKIPPED = {"build", "dist", "shared", "__pycache__"}
SOURCES = {".md", ".py", ".cpp", ".h", ".cu", ".cuh", ".sh", ".toml", ".json", ".txt"}
#: Pages that the guide makes from code; `make docs` checks links to them.
GENERATED = re.compile(r"(\.\./)*(verbs/[\w-]+|contributing)\.md")
#: Pages of other projects that comments cite by such a path, and a placeholder.
FOREIGN = {"docs/operators.md", "docs/ContribOperators.md", "docs/gguf.md", "docs/figures/NAME.json"}


def files(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    """All files with these suffixes below a folder, sorted."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED or path.is_symlink():
            continue
        if path.is_dir():
            yield from files(path, suffixes)
        elif path.suffix in suffixes:
            yield path


def prose(page: Path) -> list[str]:
    """A page's lines without code blocks."""
    lines, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            lines.append(line)
    return lines


def headings(page: Path) -> list[str]:
    """The text of a page's headings, links replaced by their words."""
    found = (re.match(r"#{1,6} +(.*?) *#*$", line) for line in prose(page))
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]) for heading in found if heading]


def anchors(page: Path) -> set[str]:
    """What can follow a # in a link to the page: GitHub's names of its headings."""
    counts: dict[str, int] = {}
    names = set()
    for text in headings(page):
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{name}-{counts[name]}" if name in counts else name)
        counts[name] = counts.get(name, 0) + 1
    return names


def targets(page: Path) -> list[str]:
    """Targets of the page's links and images, code left out."""
    text = re.sub(r"`[^`]*`", "", "\n".join(prose(page)))
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    by_name = re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return [*inline, *by_name, *re.findall(r"(?:href|src)=\"([^\"]+)\"", text)]


def broken(page: Path) -> list[str]:
    """Relative links of the page that lead nowhere."""
    found = []
    for target in targets(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", target) or GENERATED.fullmatch(target.partition("#")[0]):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and (path.suffix != ".md" or anchor not in anchors(path))):
            found.append(target)
    return found


def absent(suffixes: set[str], pattern: str) -> list[str]:
    """Paths from the repository's root that match the pattern in a file with such a suffix, and do not exist."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(ROOT, suffixes)
        for name in sorted(set(re.findall(pattern, path.read_text(encoding="utf-8", errors="replace"))) - FOREIGN)
        if not any(ROOT.glob(name))
    ]


@pytest.mark.parametrize("page", files(ROOT, {".md"}), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page: Path) -> None:
    assert broken(page) == []


def test_pages_and_figures_that_sources_name_exist() -> None:
    assert absent(SOURCES, r"(?<![\w./-])docs/[\w./-]+\.(?:md|json|svg)\b") == []


def test_sources_that_pages_name_exist() -> None:
    assert absent({".md"}, r"(?<![\w./-])(?:nanoquant_edge|plugins|tests|benchmarks)/[\w./*-]+\.[a-z]+\b") == []


def test_headings_that_sources_name_exist() -> None:
    missing = []
    for path in files(ROOT, SOURCES):
        # A citation may go on in the next line of a comment.
        text = re.sub(r"\n\s*(?://|#:?)?\s*", " ", path.read_text(encoding="utf-8", errors="replace"))
        for name, heading in re.findall(r"(?<![\w./-])(docs/[\w./-]+\.md), \"([^\"]+)\"", text):
            # "Tables" is enough for "Tables: `NanoQuantEmbedding` and `NanoQuantHead`".
            if not any(f"{found}:".startswith(f"{heading}:") for found in headings(ROOT / name)):
                missing.append(f"{path.relative_to(ROOT)}: {name}, {heading}")
    assert missing == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b`, c: d_e\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    good = "[a](other.md#a-b-c-d_e) [b](other.md#twice-1) [c](#top) [d](https://example.com/#x) `[e](none.md)`"
    bad = "[f](gone.md) [g](other.md#twice-2) ![h](gone.png) [i](#none)"
    page.write_text(f"# Top\n\n{good}\n{bad}\n\n    [in code](none.md)\n", encoding="utf-8")
    assert broken(page) == ["gone.md", "other.md#twice-2", "gone.png", "#none"]
