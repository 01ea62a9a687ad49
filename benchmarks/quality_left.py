# SPDX-License-Identifier: Apache-2.0
"""The one table to choose a rate by: what a model has left at a number of bits, from docs/figures/quality.json."""

from __future__ import annotations

from typing import Any

from benchmarks.quality_rows import Group, by_model, dense_figures, groups, share_kept

__all__ = ["left_table"]

#: Rates that the table has.
_RATES = (2.0, 1.5, 1.0)
#: What a row may be made by, the best first.
_MADE_BY = ("max", "full", "balanced", "default, full schedule", "default")
#: What `balanced` was called before benchmarks knew it by its name.
_BALANCED = ("default", "reduced chat_share=0.5")
_HEAD = (
    *("model", "bits", "made by", "MB", "perplexity, times dense", "second text", "zero-shot kept", "code"),
    *("loss of dense answers", "answers that end", "repeats", "right of 30"),
)


def left_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each model the dense figures, and the best row of each rate.

    Perplexity is told as a multiple of the dense model's on WikiText-2 and on Wikipedia passages; `code` is the share
    of next tokens of source code that are the likeliest ones.
    """
    lines = [_line(list(_HEAD)), f"|{' --- |' * len(_HEAD)}"]
    for model, here in by_model(rows).items():
        dense, found = dense_figures(here), groups(here)
        name = model.removesuffix(".Q4_1").removesuffix(".Q4_K_M")
        size = f"{dense['file_mb']:.0f}" if "file_mb" in dense else ""
        cells = [name, "16", "", size, "1", "1", "100 %" if share_kept(dense, dense) else ""]
        lines.append(_line([*cells, *_use(dense)]))
        for rate in _RATES:
            group = _best(found, rate)
            if group is not None:
                lines.append(_line([name, *_cells(group, dense)]))
    return "\n".join(lines)


def _made_by(group: Group) -> str:
    if (group.recipe, group.schedule) == _BALANCED:
        return "balanced"
    if group.kind == "screening" or group.embedding != "fp16":
        return ""
    return group.recipe if group.kind == "preset" else group.name


def _best(found: list[Group], rate: float) -> Group | None:
    """The row of a rate that the longest work made."""
    here = [group for group in found if group.bpw == rate and _made_by(group) in _MADE_BY]
    return min(here, key=lambda group: _MADE_BY.index(_made_by(group)), default=None)


def _cells(group: Group, dense: dict[str, Any]) -> list[str]:
    mean = {name: group.mean(name) for name in {key for row in group.rows for key in row} if _is_number(group, name)}
    over = [f"{mean[name] / dense[name]:.2f}" if mean.get(name) and dense.get(name) else "" for name in ("ppl", "ppl2")]
    shares = [share for row in group.rows if (share := share_kept(row, dense)) is not None]
    kept = f"{100 * sum(shares) / len(shares):.0f} %" if shares else ""
    made = _made_by(group) + (f" on {', '.join(group.texts)}" if group.texts else "")
    return [f"{group.bpw:g}", made, f"{mean['file_mb']:.0f}", *over, kept, *_use(mean)]


def _use(figures: dict[str, Any]) -> list[str]:
    """Source code and answers; empty where they were not measured."""
    forms = {"code": "{:.1%}", "answer_loss": "{:.2f}", "ends": "{:.0%}", "repeats": "{:.0%}", "right": "{:.0%}"}
    cells = (form.format(figures[name]) if figures.get(name) is not None else "" for name, form in forms.items())
    return [cell.replace("%", " %") for cell in cells]


def _is_number(group: Group, name: str) -> bool:
    return all(isinstance(value, (int, float)) for value in group.values(name))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
