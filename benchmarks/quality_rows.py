# SPDX-License-Identifier: Apache-2.0
"""Rows of docs/figures/quality.json as the table and the plot take them: groups over seeds, by kind of row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["CHANCE", "Group", "by_model", "dense_figures", "groups", "share_kept"]

#: Test windows on which rows compare.
_WINDOWS = 32
_RECIPES = ("official", "default", "quick", "balanced", "full", "max", "llama.cpp", "rtn")
#: Accuracy of guessing on each zero-shot set.
CHANCE = {"arc_easy": 0.25, "hellaswag": 0.25, "piqa": 0.5, "winogrande": 0.5, "lambada": 0.0}
#: A set on which the dense model is not better than guessing by so much tells nothing.
_LEAST_DENSE = 0.05


@dataclass(frozen=True)
class Group:
    """One model, recipe, schedule, rate and storage of tables, over all seeds.

    Attributes:
        model, recipe, schedule: as in the rows; `schedule` holds changed settings too, and for llama.cpp the type.
        bpw: rate asked for.
        embedding: storage of embedding and head.
        rows: one a seed.
    """

    model: str
    recipe: str
    schedule: str
    bpw: float
    embedding: str
    rows: tuple[dict[str, Any], ...]

    @property
    def kind(self) -> str:
        """ "reduced", "full" (the whole schedule), "preset", "llama.cpp", "rtn" or "screening" (settings changed)."""
        if self.changes:
            return "screening"
        if self.recipe in ("official", "default"):
            return self.base or "full"
        return self.recipe if self.recipe in ("rtn", "llama.cpp") else "preset"

    @property
    def name(self) -> str:
        """What a table calls it, beside its rate."""
        names = {"rtn": f"round-to-nearest, {self.bpw:.0f} bits", "llama.cpp": f"llama.cpp {self.schedule}"}
        name = names.get(self.recipe, self.recipe)
        tables = "" if self.embedding == "fp16" else f", {self.embedding} tables"
        text = f", text: {', '.join(self.texts)}" if self.texts else ""
        return name + (", full schedule" if self.kind == "full" else "") + text + tables

    @property
    def texts(self) -> list[str]:
        """Names of calibration texts other than the usual one."""
        return [word.removeprefix("text=") for word in self.schedule.split() if word.startswith("text=")]

    @property
    def base(self) -> str:
        """The schedule without changed settings."""
        return " ".join(word for word in self.schedule.split() if "=" not in word)

    @property
    def changes(self) -> str:
        """The changed settings."""
        words = (word for word in self.schedule.split() if not word.startswith("text="))
        return " ".join(word for word in words if "=" in word)

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
    return group.bpw, place, group.schedule, group.embedding


def by_model(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows on 32 test windows, model by model in alphabetical order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["n_windows"] == _WINDOWS:
            found[row["model"]].append(row)
    return dict(sorted(found.items()))


def groups(rows: Iterable[dict[str, Any]]) -> list[Group]:
    """Rows gathered over seeds, by rate, then recipe; of a repeated run the last."""
    found: dict[tuple[str, str, str, float, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        key = (row["model"], row["recipe"], row["schedule"], row["target_bpw"], row.get("embedding", "fp16"))
        found[key][row["seed"]] = row
    gathered = [Group(*key, tuple(seeds[seed] for seed in sorted(seeds))) for key, seeds in found.items()]
    return sorted(gathered, key=_order)


def share_kept(row: dict[str, Any], dense: dict[str, Any] | None = None) -> float | None:
    """What is left of zero-shot accuracy: accuracy over chance, compressed over dense, mean of the sets.

    Sets are left out on which the dense model is less than 0.05 better than chance. None where no set is left.

    Args:
        row: with accuracies, and the dense model's under the same names with _dense behind them.
        dense: the dense model's accuracies, where the row has none.

    Example:
        >>> share_kept({"piqa": 0.6, "piqa_dense": 0.7, "lambada": 0.1, "lambada_dense": 0.4})
        0.375
    """
    kept = []
    for name, chance in CHANCE.items():
        best = row.get(f"{name}_dense", (dense or {}).get(name))
        if row.get(name) is not None and best is not None and best - chance >= _LEAST_DENSE:
            kept.append(max(0.0, row[name] - chance) / (best - chance))
    return round(sum(kept) / len(kept), 4) if kept else None


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
