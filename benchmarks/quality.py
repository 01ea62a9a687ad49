# SPDX-License-Identifier: Apache-2.0
"""Compress a model and measure what it lost: perplexity on two corpora, KL and top-1 agreement, zero-shot accuracy.

    python -m benchmarks.quality MODEL --recipe default --recipe official --schedule reduced --bpw 1.0 --seed 0 --append

Calibration is the WikiText-2 training part, or what `--calibration` names; the corpora are the WikiText-2 test split
and Wikipedia passages. One row for each model, recipe, rate and seed, written as soon as it is there; rows that the
figure holds already are passed over, so a long table can be made in several runs, each of them within `--time-limit`.
`--figures` writes elsewhere (on a machine whose files are fetched), and `--merge FILE` takes such rows over. The dense
model's figures are taken from earlier rows where there are any. `--answers` also asks a model with a chat format
(`benchmarks.answers`). Rows of `default` have no conversations among their windows and no more bits than `official`,
so that they compare with it; presets are as they come.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.answers import Answers
from benchmarks.figures import FOLDER, append_rows, figures_option, merge_rows
from benchmarks.quality_measure import Measure
from benchmarks.round_to_nearest import rounded_layers, stored_bits
from nanoquant_edge.compression import CompressOptions, Recipe, compress_source
from nanoquant_edge.compression.calibrate.conversations import has_chat_format
from nanoquant_edge.compression.recipe import REDUCED
from nanoquant_edge.formats.companions import COMPANION_FILES
from nanoquant_edge.models.loading import SourceModel, load_model
from nanoquant_edge.validation.dense import dense_model

_KEY = ("model", "recipe", "schedule", "n_windows", "target_bpw", "seed")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others."""
    return (*(row.get(name) for name in _KEY), row.get("embedding", "fp16"))


@dataclass(frozen=True)
class Size:
    """How much is measured: test windows of each corpus, items of each zero-shot set, chat prompts."""

    windows: int
    items: int
    prompts: int = 0


def known_dense(rows: list[dict[str, Any]], model: str, size: Size) -> dict[str, Any] | None:
    """The dense model's figures, where an earlier row of the same model, windows, items and prompts has them."""
    for row in reversed(rows):
        asked = (row["model"], row["n_windows"], row.get("zero_shot_items"), row.get("answers", 0))
        if asked == (model, size.windows, size.items, size.prompts):
            found = {name: value for name, value in row.items() if name.endswith("_dense")}
            if "code_dense" in found:
                return found
    return None


class Bench:
    """A model, the texts it is measured on, and the dense model's own figures.

    Args:
        source: the model.
        texts: folder of the texts.
        size: how much is measured.
        calibration: files and folders of text to calibrate on, PATH or PATH=WEIGHT; the WikiText-2 training part.
        rows: earlier rows, which may hold the dense model's figures.
    """

    def __init__(
        self,
        source: SourceModel,
        texts: Path,
        size: Size,
        *,
        calibration: Sequence[str] = (),
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        asks = size.prompts and has_chat_format(source.tokenizer)
        self.source = source
        self.size = size if asks else Size(size.windows, size.items)
        self.calibration = tuple(calibration) or (str(texts / "wikitext2-train-part.raw"),)
        self.measure = Measure(source.tokenizer, source.config, texts, size.windows, size.items)
        self.answers = Answers(source.tokenizer, size.prompts) if asks else None
        self._dense = known_dense(list(rows), source.name, self.size)

    def figures(self, model: Any, states: torch.Tensor) -> dict[str, Any]:
        """What every row has: a model's figures, the dense model's, and how long measuring took."""
        started = time.monotonic()
        found = self.measure.compressed(model, self.source.model, states)
        if self.answers is not None:
            found |= self.answers.compressed(model, self.source.model)
        seconds = time.monotonic() - started
        if self._dense is None:
            self._dense = self._dense_figures()
        weights = sum(parameter.numel() for parameter in self.source.model.parameters())
        return {
            **found,
            **self._dense,
            "dense_mb": round(weights * 2 / 1e6 + self._companions_mb(), 2),
            "zero_shot_items": self.size.items,
            **({"answers": self.size.prompts} if self.answers else {}),
            "measure_seconds": round(seconds, 1),
        }

    def row(self, label: dict[str, Any], recipe: Recipe, options: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Compress and measure once."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # the peak is this row's, not that of the rows before it
        chosen = CompressOptions(
            bpw=label["target_bpw"],
            recipe=recipe,
            calibration=self.calibration,
            seed=label["seed"],
            overwrite=True,
            **options,
        )
        checkpoint = compress_source(self.source, folder, chosen)
        states = self.measure.dense_states(self.source.model)
        run = checkpoint.settings.recipe
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return {
            **label,
            "true_bpw": round(checkpoint.settings.true_bpw, 4),
            **self.figures(dense_model(folder).to(self.source.model.device), states),
            "file_mb": round(size / 1e6, 2),
            **{name: run[name] for name in ("seconds", "stage_seconds", "peak_mb", "kd_loss", "undone")},
        }

    def rounded_row(self, label: dict[str, Any]) -> dict[str, Any]:
        """Measure round-to-nearest at as many bits as the label's rate says; the file's size is worked out."""
        model, bits = self.source.model, int(label["target_bpw"])
        names = self.source.family.layer_names(self.source.decoder.num_layers)
        shapes = [tuple(model.get_submodule(name).weight.shape) for name in names]
        stored = sum(stored_bits((m, n), bits) for m, n in shapes)
        weights = sum(m * n for m, n in shapes)
        others = sum(parameter.numel() for parameter in model.parameters()) - weights
        states = self.measure.dense_states(model)
        self._dense = self._dense or self._dense_figures()
        with rounded_layers(model, names, bits):
            figures = self.figures(model, states)  # the head is not rounded, so it is the dense model's too
        return {
            **label,
            "true_bpw": round(stored / weights, 4),
            **figures,
            "file_mb": round(stored / 8e6 + others * 2 / 1e6 + self._companions_mb(), 2),
        }

    def _dense_figures(self) -> dict[str, Any]:
        found = self.measure.dense(self.source.model)
        if self.answers is not None:
            found |= {f"{name}_dense": value for name, value in self.answers.dense(self.source.model).items()}
        return found

    def _companions_mb(self) -> float:
        """Size of the tokenizer and whatever else every checkpoint of the model carries."""
        files = [self.source.companions / name for name in COMPANION_FILES]
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _wanted(
    model: str,
    recipes: tuple[str, ...],
    schedule: str,
    changes: tuple[str, ...],
    bpws: tuple[float, ...],
    seeds: tuple[int, ...],
    windows: int,
) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Each row's label and recipe."""
    settings = {name: json.loads(value) for name, value in (change.split("=", 1) for change in changes)}
    for bpw in bpws:
        for seed in seeds:
            for name in recipes:
                plain = {"chat_share": 0.0, "rank_fill": False} if name == "default" else {}
                extra = {**plain, **(REDUCED[name] if schedule == "reduced" else {}), **settings}
                recipe = Recipe.preset("full" if name == "default" else name, **extra)
                text = " ".join([*([schedule] if schedule else []), *changes])
                values = (model, name, text, windows, bpw, seed)
                yield dict(zip(_KEY, values, strict=True)), recipe


@click.command()
@click.argument("models", nargs=-1)
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option(
    "--recipe", "--preset", "recipes", multiple=True, help="May be repeated; quick where nothing else is asked for."
)
@click.option("--schedule", type=click.Choice(["", "reduced"]), default="", help="Of default and official.")
@click.option("--bpw", "bpws", type=float, multiple=True, default=(2.0,), show_default=True, help="May be repeated.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="May be repeated.")
@click.option("--rtn", "rounded", type=int, multiple=True, help="Also round-to-nearest at so many bits.")
@click.option("--windows", default=32, show_default=True, help="Test windows of 2048 tokens on each corpus.")
@click.option("--items", default=0, show_default=True, help="Items of each zero-shot set; 0 leaves them out.")
@click.option("--answers", default=0, show_default=True, help="Chat prompts, 200 at most; 0 asks nothing.")
@click.option("--embedding", default="fp16", show_default=True, help="Of the checkpoints: fp16, int8 or int4.")
@click.option("--calibration", multiple=True, help="Text in place of the WikiText-2 training part; repeatable.")
@click.option("--set", "changes", multiple=True, help="Recipe setting, name=value (JSON).")
@click.option("--device", default="auto", show_default=True)
@click.option("--compute-dtype", default="auto", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to the figure file quality.json.")
@figures_option
@click.option("--merge", type=click.Path(path_type=Path, exists=True), help="Only take over the rows of this file.")
@click.option("--time-limit", type=float, default=float("inf"), help="Start no further row after so many seconds.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the last checkpoint here.")
def main(
    models: tuple[str, ...],
    texts: Path,
    recipes: tuple[str, ...],
    schedule: str,
    bpws: tuple[float, ...],
    seeds: tuple[int, ...],
    rounded: tuple[int, ...],
    windows: int,
    items: int,
    answers: int,
    calibration: tuple[str, ...],
    changes: tuple[str, ...],
    append: bool,
    folder: Path,
    merge: Path | None,
    time_limit: float,
    output: Path | None,
    **options: str,
) -> None:
    """Compress MODELS, one after the other, and print one row a recipe, rate and seed."""
    started = time.monotonic()
    if merge is not None:
        click.echo(f"{merge_rows('quality', merge, folder)} rows taken over")
        return
    if not models:
        raise click.UsageError("Name a model.")
    recipes = recipes or (() if rounded else ("quick",))
    for place, model in enumerate(models):
        if time.monotonic() - started > time_limit:
            click.echo(f"time limit: not started {', '.join(models[place:])}", err=True)
            return
        with load_model(model) as source, tempfile.TemporaryDirectory() as scratch:
            there = _rows(folder) if append else []
            size = Size(windows, items, answers)
            earlier = there + (_rows(FOLDER) if folder != FOLDER else [])
            bench = Bench(source, texts, size, calibration=calibration, rows=earlier)
            jobs: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = []
            told = [f"text={Path(name).name}" for name in calibration]
            for label, recipe in _wanted(source.name, recipes, schedule, changes, bpws, seeds, windows):
                label["schedule"] = " ".join([*label["schedule"].split(), *told])
                if options["embedding"] != "fp16":
                    label["embedding"] = options["embedding"]
                made = output or Path(scratch) / "checkpoint"
                jobs.append((label, functools.partial(bench.row, label, recipe, options, made)))
            for bits in rounded:
                label = dict(zip(_KEY, (source.name, "rtn", "", windows, float(bits), 0), strict=True))
                jobs.append((label, functools.partial(_rounded, bench, label, options["device"])))
            done = {_key(row) for row in there}
            jobs = [(label, job) for label, job in jobs if _key(label) not in done]
            for count, (_, job) in enumerate(jobs):
                if time.monotonic() - started > time_limit:
                    click.echo(f"time limit: {len(jobs) - count} rows of {source.name} not started", err=True)
                    return
                row = job()
                if append:
                    append_rows("quality", [row], folder=folder)
                click.echo(json.dumps(row))


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "quality.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def _rounded(bench: Bench, label: dict[str, Any], device: str) -> dict[str, Any]:
    bench.source.model.to("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    return bench.rounded_row(label)


if __name__ == "__main__":
    main()
