# SPDX-License-Identifier: Apache-2.0
"""Rows of docs/figures/quality.json as the table and the plot take them: groups over seeds, by kind of row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Group", "by_model", "dense_figures", "groups"]

#: Test windows on which rows compare.
_WINDOWS = 32
_RECIPES = ("official", "default", "balanced", "quick", "rtn")


@dataclass(frozen=True)
class Group:
    """One model, recipe, schedule and rate, over all seeds.

    Attributes:
        model, recipe, schedule: as in the rows; `schedule` holds changed settings too.
        bpw: rate asked for.
        rows: one a seed.
    """

    model: str
    recipe: str
    schedule: str
    bpw: float
    rows: tuple[dict[str, Any], ...]

    @property
    def kind(self) -> str:
        """ "reduced", "full" (the whole schedule), "preset", "rtn" or "screening" (settings were changed)."""
        if self.changes:
            return "screening"
        if self.recipe in ("official", "default"):
            return self.schedule or "full"
        return "rtn" if self.recipe == "rtn" else "preset"

    @property
    def base(self) -> str:
        """The schedule without changed settings."""
        return " ".join(word for word in self.schedule.split() if "=" not in word)

    @property
    def changes(self) -> str:
        """The changed settings."""
        return " ".join(word for word in self.schedule.split() if "=" in word)

    def values(self, name: str) -> list[float]:
        """What the rows have under a name; times of runs that shared their GPU only where none had one alone."""
        alone = [row for row in self.rows if row.get("alone")] if name == "seconds" else []
        return [row[name] for row in alone or self.rows if row.get(name) is not None]

    def mean(self, name: str) -> float | None:
        """Mean over the seeds, where any row has it."""
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def over(self, other: Group | None) -> float | None:
        """Mean perplexity over that of another group, on the seeds that both have; None where there is none."""
        seeds = {row["seed"] for row in self.rows} & {row["seed"] for row in (other.rows if other else ())}
        if other is None or not seeds:
            return None
        one, two = (sum(row["ppl"] for row in group.rows if row["seed"] in seeds) for group in (self, other))
        return float(one / two)


def _order(group: Group) -> tuple[Any, ...]:
    place = _RECIPES.index(group.recipe) if group.recipe in _RECIPES else len(_RECIPES)
    return group.bpw, place, group.schedule


def by_model(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows on 32 test windows, model by model in alphabetical order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["n_windows"] == _WINDOWS:
            found[row["model"]].append(row)
    return dict(sorted(found.items()))


def groups(rows: Iterable[dict[str, Any]]) -> list[Group]:
    """Rows gathered over seeds, by rate, then recipe; of a repeated run the last."""
    found: dict[tuple[str, str, str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["model"], row["recipe"], row["schedule"], row["target_bpw"]][row["seed"]] = row
    gathered = [Group(*key, tuple(seeds[seed] for seed in sorted(seeds))) for key, seeds in found.items()]
    return sorted(gathered, key=_order)


def dense_figures(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The uncompressed model's figures, which lie in the rows that were measured beside it; the last of each.

    `file_mb` is that of 16-bit weights with the same tokenizer files.
    """
    found: dict[str, Any] = {}
    for row in rows:
        found.update({name.removesuffix("_dense"): row[name] for name in row if name.endswith("_dense")})
        if "dense_mb" in row:
            found["file_mb"] = row["dense_mb"]
    return found
