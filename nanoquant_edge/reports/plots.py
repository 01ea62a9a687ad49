# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report as SVG elements, drawn by matplotlib, in colours that follow the page's light and dark form.

matplotlib is an extra: where it is not installed there are no pictures, and `missing` says how to get them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..system.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bars", "Curve", "bar_plot", "curve_plot", "missing"]

#: Colours that matplotlib writes, and what the page puts in their place (templates/page.html.j2).
_INK = "#010203"
_SERIES = {"#010204": "var(--series-a)", "#010205": "var(--series-b)", "#010206": "var(--series-c)"}
_LINE = "#010207"
_THEME = {_INK: "currentColor", _LINE: "var(--line)", **_SERIES}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from files of strangers
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Curve:
    """One series of points.

    Attributes:
        name: for the legend.
        x, y: as many of each; a y that is not finite leaves a gap.
        dots: points instead of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class Bars:
    """One series of bars; `values` in the order of the labels."""

    name: str
    values: Sequence[float]


def missing() -> str:
    """Why there are no pictures, and how to get them; "" where they can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return f"Pictures need matplotlib: {install_command('plots')}"
    return ""


def curve_plot(
    curves: Sequence[Curve],
    *,
    x_title: str,
    y_title: str,
    logarithmic: bool = False,
    limit: float | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines and points over one axis.

    Args:
        curves: at most three lines and three sets of dots, which share colours in that order.
        x_title, y_title: of the axes.
        logarithmic: the y axis.
        limit: a level to mark with a dashed line.
        y_range: of the y axis; None fits it to the points.

    Returns:
        An SVG element; "" where matplotlib is missing or nothing is finite.
    """
    values = [y for curve in curves for y in curve.y if math.isfinite(y) and (y > 0 or not logarithmic)]
    if missing() or not values:
        return ""
    from matplotlib.ticker import NullFormatter

    def draw(axes: Axes) -> None:
        colours = list(_SERIES)
        counts = {False: 0, True: 0}
        for curve in curves:
            colour = colours[counts[curve.dots] % len(colours)]
            counts[curve.dots] += 1
            style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3} if curve.dots else {}
            axes.plot(curve.x, curve.y, color=colour, label=printable(curve.name), linewidth=1.4, **style)
        if limit is not None:
            axes.axhline(limit, color=_INK, linestyle="--", linewidth=0.9, label="limit")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _place: f"{value:.3g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if y_range is not None:
            axes.set_ylim(*y_range)
        axes.set_xlabel(printable(x_title))
        axes.set_ylabel(printable(y_title))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(curves) + 1, fontsize=8)

    return _drawn(draw, 3.0)


def bar_plot(labels: Sequence[str], series: Sequence[Bars], *, x_title: str) -> str:
    """Horizontal bars, the first label on top.

    Returns:
        An SVG element; "" where matplotlib is missing or there are no labels.
    """
    if missing() or not labels:
        return ""

    def draw(axes: Axes) -> None:
        height = 0.8 / len(series)
        for index, (bars, colour) in enumerate(zip(series, _SERIES, strict=False)):
            places = [place + index * height - 0.4 + height / 2 for place in range(len(labels))]
            axes.barh(places, bars.values, height=height * 0.9, color=colour, label=bars.name)
        axes.set_yticks(range(len(labels)), [printable(label) for label in labels])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_title)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), fontsize=8)

    return _drawn(draw, 0.7 + 0.26 * len(labels) * (0.6 + 0.4 * len(series)))


def _drawn(draw: Callable[[Axes], None], height: float) -> str:
    """An SVG element, 7.2 inches wide, of what `draw` puts on empty axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        draw(figure.add_subplot())
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    svg = _METADATA.sub("", _HEAD.sub("", target.getvalue(), count=1), count=1)
    for colour, replacement in _THEME.items():
        svg = svg.replace(colour, replacement)
    return svg
