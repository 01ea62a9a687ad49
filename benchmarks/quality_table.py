# SPDX-License-Identifier: Apache-2.0
"""The tables of quality, from the rows of docs/figures/quality.json.

    python -m benchmarks.quality_table            # print them
    python -m benchmarks.quality_table --write    # into the pages

What is left at each rate (`benchmarks.quality_left`) goes between markers of docs/QUALITY.md and README.md, all else is
docs/figures/quality.md: a section a model, first the recipes on the reduced schedule, then full schedules, presets,
llama.cpp's types, round-to-nearest and the dense model; then, apart, what single parts of a recipe do. Rows of the same
recipe, schedule and rate are one line: the mean over seeds, and the least and the most where there are several; ratios
are over the seeds that both have. Only rows on 32 test windows are taken, and of a repeated run the last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import FOLDER
from benchmarks.quality_left import left_table
from benchmarks.quality_rows import Group, by_model, dense_figures, groups

__all__ = ["tables"]

_ROOT = Path(__file__).resolve().parent.parent
#: The long tables, and the pages that hold the short one.
TABLES, PAGES = FOLDER / "quality.md", (_ROOT / "docs" / "QUALITY.md", _ROOT / "README.md")
_BEGIN, _END = "<!-- what is left: python -m benchmarks.quality_table --write -->", "<!-- end of what is left -->"
_HEAD = """# All figures of quality

Made by `python -m benchmarks.quality_table --write` from [quality.json](quality.json). What the columns mean is in
[QUALITY.md](../QUALITY.md#what-is-measured).

"""
_QUALITY = {
    "WikiText-2": ("ppl", "{:.2f}"),
    "Wikipedia": ("ppl2", "{:.2f}"),
    "KL, nats": ("kl", "{:.3f}"),
    "same top-1": ("top1", "{:.3f}"),
}
_OTHERS = {
    "ARC-e": ("arc_easy", "{:.3f}"),
    "HellaSwag": ("hellaswag", "{:.3f}"),
    "PIQA": ("piqa", "{:.3f}"),
    "WinoGrande": ("winogrande", "{:.3f}"),
    "LAMBADA": ("lambada", "{:.3f}"),
    "code": ("code", "{:.3f}"),
    "MB": ("file_mb", "{:.1f}"),
    "seconds": ("seconds", "{:.0f}"),
    "peak, MB": ("peak_mb", "{:.0f}"),
}
_COST = {name: _OTHERS[name] for name in ("seconds", "peak, MB")}
_SCREENED = "What parts of a recipe do, one group of settings changed at a time:"
_LARGE = 1e5  # from here on digits say nothing
_KINDS = ("reduced", "full", "preset", "llama.cpp", "rtn")


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean, least, most = (_number(value, form) for value in (sum(values) / len(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least}–{most})"


def _number(value: float, form: str) -> str:
    return f"{value:.1e}" if value >= _LARGE else form.format(value)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(group: Group, columns: dict[str, tuple[str, str]]) -> list[str]:
    return [_cell(group.values(name), form) for name, form in columns.values()]


def _ratio(group: Group, found: list[Group], recipe: str) -> str:
    """Perplexity over that of the unchanged recipe of this name at the same rate and schedule."""
    peers = (g for g in found if (g.recipe, g.schedule, g.bpw) == (recipe, group.base, group.bpw) and g is not group)
    ratio = group.over(next(peers, None))
    return "" if ratio is None else f"{ratio:.3f}"


def _main_table(found: list[Group], dense: dict[str, Any]) -> list[str]:
    head = ["recipe", "bits asked", "stored", "seeds", "over official", *_QUALITY, *_OTHERS]
    lines = [_line(head), f"|{' --- |' * len(head)}"]
    for kind in _KINDS:
        for group in found:
            if group.kind != kind:
                continue
            over = _ratio(group, found, "official") if group.recipe == "default" else ""
            rates = [f"{group.bpw:g}", f"{group.mean('true_bpw'):.3f}", str(len(group.rows)), over]
            lines.append(_line([group.name, *rates, *_cells(group, {**_QUALITY, **_OTHERS})]))
    if dense:
        cells = [_cell([dense[name]] if name in dense else [], form) for name, form in {**_QUALITY, **_OTHERS}.values()]
        lines.append(_line(["dense", "16", "16", "", "", *cells]))
    return lines


def _screening_table(found: list[Group]) -> list[str]:
    head = ["recipe and what was changed", "bits asked", "seeds", "over unchanged", *_QUALITY, *_COST]
    lines = [_line(head), f"|{' --- |' * len(head)}"]
    for group in found:
        if group.kind == "screening":
            name = f"{group.recipe} {group.base}".strip()
            over = _ratio(group, found, group.recipe)
            cells = [f"{name}: `{group.changes}`", f"{group.bpw:g}", str(len(group.rows)), over]
            lines.append(_line([*cells, *_cells(group, {**_QUALITY, **_COST})]))
    return lines if len(lines) > 2 else []


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a section a model, with one table of recipes and rates and one of screened parts."""
    parts = []
    for model, here in by_model(rows).items():
        found = groups(here)
        parts.append("\n".join([f"### {model}", "", *_main_table(found, dense_figures(here))]))
        screened = _screening_table(found)
        if screened:
            parts.append("\n".join([_SCREENED, "", *screened]))
    return "\n\n".join(parts)


def pages(rows: list[dict[str, Any]]) -> dict[Path, str]:
    """Every file that holds tables of these rows, and what stands in it."""
    found = {TABLES: f"{_HEAD}{tables(rows)}\n"}
    for page in PAGES:
        before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
        found[page] = f"{before}{_BEGIN}\n{left_table(rows)}\n{_END}{rest.split(_END)[1]}"
    return found


@click.command()
@click.option("--write", is_flag=True, help="Write them into the pages instead of printing them.")
def main(write: bool) -> None:
    """Print or write the quality tables."""
    rows = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"]
    if not write:
        click.echo(f"{left_table(rows)}\n\n{tables(rows)}")
        return
    for page, text in pages(rows).items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
