# SPDX-License-Identifier: Apache-2.0
"""Perplexity against file size, one panel a model, from the rows of docs/figures/quality.json alone.

    python -m benchmarks.quality_plot             # writes docs/figures/quality.svg

Lines join the rates of a recipe on one schedule, and llama.cpp's types; bars span seeds. Needs matplotlib
(`pip install .[plots]`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import FOLDER
from benchmarks.quality_rows import by_model, dense_figures, groups

__all__ = ["Series", "draw", "panels"]

_STYLES = {
    "official": {"color": "#b2432f", "marker": "s"},
    "default": {"color": "#1f6f8b", "marker": "o"},
    "balanced": {"color": "#4a9fb8", "marker": "o"},
    "full": {"color": "#1f6f8b", "marker": "D"},
    "max": {"color": "#0b3c49", "marker": "D"},
    "llama.cpp": {"color": "#c98a1b", "marker": "v"},
    "rtn": {"color": "#8a8a8a", "marker": "^"},
    "dense": {"color": "black", "marker": "*"},
}
_NAMES = {"rtn": "round-to-nearest", "dense": "uncompressed, 16 bits", "llama.cpp": "llama.cpp, importance matrix"}
#: Presets with a line of their own.
_PRESETS = ("balanced", "full", "max")


@dataclass
class Series:
    """Points of one line.

    Attributes:
        recipe: of all points.
        full: whether the schedule is the full one.
        embedding: storage of embedding and head.
        text: calibration text other than the usual one.
        points: (what to write beside it, MB, mean perplexity, least, most), by rising size.
    """

    recipe: str
    full: bool = False
    embedding: str = "fp16"
    text: str = ""
    points: list[tuple[str, float, float, float, float]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """For the legend."""
        name = _NAMES.get(self.recipe, self.recipe)
        tables = "" if self.embedding == "fp16" else f", {self.embedding} tables"
        text = f", {self.text}" if self.text else ""
        return (f"{name}, full schedule" if self.full else name) + text + tables


def panels(rows: list[dict[str, Any]]) -> dict[str, list[Series]]:
    """What is drawn of each model: recipes, presets, llama.cpp's types, round-to-nearest, the uncompressed model."""
    found = {}
    for model, here in by_model(rows).items():
        lines: dict[tuple[str, bool, str, str], Series] = {}
        for group in groups(here):
            drawn = group.kind in ("reduced", "full", "rtn", "llama.cpp")
            if not drawn and (group.kind != "preset" or group.recipe not in _PRESETS):
                continue
            key = (group.recipe, group.kind == "full", group.embedding, ", ".join(group.texts))
            size, values = group.mean("file_mb"), group.values("ppl")
            if size is not None and values:
                name = group.schedule if group.kind == "llama.cpp" else f"{group.bpw:g}"
                point = (name, size, sum(values) / len(values), min(values), max(values))
                lines.setdefault(key, Series(*key)).points.append(point)
        dense = dense_figures(here)
        if {"ppl", "file_mb"} <= set(dense):
            value = dense["ppl"]
            points = [("16", dense["file_mb"], value, value, value)]
            lines["dense", False, "fp16", ""] = Series("dense", points=points)
        for series in lines.values():
            series.points.sort(key=lambda point: point[1])
        found[model] = list(lines.values())
    return found


#: Perplexities above this lie beyond the upper edge, with their value written there.
_HIGHEST = 3000.0


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the plot; the format is the path's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    # The same rows give the same file: no date, no random names.
    matplotlib.rcParams.update({"svg.hashsalt": "quality", "font.size": 9, "svg.fonttype": "none"})
    models = panels(rows)
    figure, axes = pyplot.subplots(1, len(models), figsize=(5.2 * len(models), 4.4), squeeze=False)
    handles: dict[str, Any] = {}
    for axis, (model, lines) in zip(axes[0], models.items(), strict=True):
        for series in lines:
            names, sizes, means = ([point[place] for point in series.points] for place in range(3))
            bars = [[p[2] - p[3] for p in series.points], [p[4] - p[2] for p in series.points]]
            style: dict[str, Any] = dict(_STYLES[series.recipe])
            if series.full or series.embedding != "fp16":
                style.update(linestyle="--" if series.full else ":", markerfacecolor="white")
            handles[series.label] = axis.errorbar(sizes, means, yerr=bars, capsize=2, label=series.label, **style)
            for name, size, mean in zip(names, sizes, means, strict=True):
                text, place = (name, mean) if mean <= _HIGHEST else (f"{name}: {mean:.1e}", _HIGHEST)
                below = series.recipe == "default"  # two recipes' points of one rate lie above each other
                shift, side = ((-4, -9), "right") if below else ((5, 4 if mean <= _HIGHEST else -9), "left")
                axis.annotate(text, (size, place), textcoords="offset points", xytext=shift, fontsize=7, ha=side)
        axis.set(title=model, xscale="log", yscale="log", xlabel="file, MB", ylabel="perplexity, WikiText-2 test")
        means = [point[2] for series in lines for point in series.points]
        axis.set_ylim(0.6 * min(means), min(_HIGHEST, 1.6 * max(means)))
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(visible=True, which="major", alpha=0.3)
    figure.legend(list(handles.values()), list(handles), fontsize=8, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=FOLDER / "quality.svg", help="An .svg or .png file.")
def main(output: Path) -> None:
    """Draw perplexity against file size."""
    rows = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"]
    draw(rows, output)
    click.echo(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
