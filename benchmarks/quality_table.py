# SPDX-License-Identifier: Apache-2.0
"""The quality table of docs/QUALITY.md, from the rows of docs/figures/quality.json.

    python -m benchmarks.quality_table            # print it
    python -m benchmarks.quality_table --write    # between the markers of docs/QUALITY.md

Rows of the same model, recipe, schedule and rate are one line: the mean over seeds, and the least and the most where
there are several. Only rows on 32 test windows are taken, and of a repeated run the last.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import FOLDER

__all__ = ["table"]

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "QUALITY.md"
_BEGIN, _END = "<!-- table: python -m benchmarks.quality_table --write -->", "<!-- end of table -->"
_COLUMNS = {
    "WikiText-2": ("ppl", "{:.2f}"),
    "Wikipedia": ("ppl2", "{:.2f}"),
    "KL, nats": ("kl", "{:.3f}"),
    "same top-1": ("top1", "{:.3f}"),
    "ARC-e": ("arc_easy", "{:.3f}"),
    "HellaSwag": ("hellaswag", "{:.3f}"),
    "PIQA": ("piqa", "{:.3f}"),
    "WinoGrande": ("winogrande", "{:.3f}"),
    "LAMBADA": ("lambada", "{:.3f}"),
    "MB": ("file_mb", "{:.1f}"),
    "seconds": ("seconds", "{:.0f}"),
    "peak, MB": ("peak_mb", "{:.0f}"),
}


def _cell(rows: list[dict[str, Any]], name: str, form: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return ""
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))}–{form.format(max(values))})"


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, one line a model, recipe, schedule and rate."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["n_windows"] == 32:
            groups[row["model"], row["recipe"], row["schedule"], row["target_bpw"]][row["seed"]] = row
    head = ["model", "recipe", "bits asked, stored", "seeds", *_COLUMNS]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for (model, recipe, schedule, bpw), seeds in sorted(groups.items(), key=lambda item: (item[0][0], item[0][3])):
        found = list(seeds.values())
        stored = sum(row["true_bpw"] for row in found) / len(found)
        cells = [model, f"{recipe} {schedule}".strip(), f"{bpw}, {stored:.3f}", str(len(found))]
        cells += [_cell(found, *column) for column in _COLUMNS.values()]
        lines.append(f"| {' | '.join(cells)} |")
    for model in sorted({row["model"] for row in rows}):
        # A dense model's figures lie in the rows that were measured beside it; the last that has them.
        here = [row for row in rows if row["model"] == model and row["n_windows"] == 32]
        dense = {name: row[f"{name}_dense"] for row in here for name, _ in _COLUMNS.values() if f"{name}_dense" in row}
        cells = [model, "dense", "16", "", *(_cell([dense], *column) for column in _COLUMNS.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--write", is_flag=True, help="Put the table into docs/QUALITY.md instead of printing it.")
def main(write: bool) -> None:
    """Print or write the quality table."""
    text = table(json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"])
    if not write:
        click.echo(text)
        return
    page = _PAGE.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN)
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.split(_END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
