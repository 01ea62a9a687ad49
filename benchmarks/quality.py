# SPDX-License-Identifier: Apache-2.0
"""Compress a model and measure what it lost: perplexity on two corpora, KL and top-1 agreement, zero-shot accuracy.

    python -m benchmarks.quality MODEL --recipe default --recipe official --schedule reduced --bpw 1.0 --seed 0 --append

Calibration is the WikiText-2 training part; the corpora are the WikiText-2 test split and Wikipedia passages. One row
for each recipe, rate and seed, written as soon as it is there; rows that the figure holds already are passed over, so a
long table can be made in several runs. `--figures` writes elsewhere (on a machine whose files are fetched), and
`--merge FILE` takes such rows over.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import FOLDER, append_rows, merge_rows
from benchmarks.round_to_nearest import rounded_layers, stored_bits
from benchmarks.zero_shot import accuracies
from nanoquant_edge.compression import Recipe, compress_source
from nanoquant_edge.compression.calibration import read_text
from nanoquant_edge.compression.recipe import REDUCED
from nanoquant_edge.models.loading import SourceModel, load_model
from nanoquant_edge.validation.dense import dense_model
from nanoquant_edge.validation.perplexity import chunked_logits, perplexity

_KEY = ("model", "recipe", "schedule", "n_windows", "target_bpw", "seed")


@torch.inference_mode()
def divergence(dense: Any, compressed: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Mean KL (dense || compressed) in nats and share of equal top-1 tokens, over windows (count, length)."""
    total, equal, positions = 0.0, 0, 0
    for row in ids.to(dense.device):
        pairs = zip(chunked_logits(dense, row[None]), chunked_logits(compressed, row[None]), strict=True)
        for (_, p), (_, q) in pairs:
            wanted, found = p[0].log_softmax(-1), q[0].log_softmax(-1)
            total += float((wanted.exp() * (wanted - found)).sum())
            equal += int((wanted.argmax(-1) == found.argmax(-1)).sum())
            positions += wanted.shape[0]
    return total / positions, equal / positions


class Bench:
    """A model, the texts it is measured on, and the dense model's own figures."""

    def __init__(self, source: SourceModel, texts: Path, windows: int, items: int) -> None:
        self.source, self.texts, self.windows, self.items = source, texts, windows, items
        self.calibration = read_text(texts / "wikitext2-train-part.raw")
        self.corpora = [
            torch.tensor(source.tokenizer(read_text(texts / name), verbose=False)["input_ids"])[: windows * 2048]
            for name in ("wikitext2-test.raw", "wikipedia-passages.txt")
        ]
        self._dense: dict[str, Any] | None = None

    def measured(self, model: Any, suffix: str = "") -> dict[str, Any]:
        """Perplexities and accuracies of a model."""
        found: dict[str, Any] = {
            f"{name}{suffix}": round(perplexity(model, ids), 3)
            for name, ids in zip(("ppl", "ppl2"), self.corpora, strict=True)
        }
        if self.items:
            scores = accuracies(model, self.source.tokenizer, self.texts / "zeroshot", self.items)
            found.update({f"{name}{suffix}": value for name, value in scores.items()})
        return found

    def row(self, label: dict[str, Any], recipe: Recipe, options: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Compress and measure once."""
        checkpoint = compress_source(
            self.source,
            folder,
            bpw=label["target_bpw"],
            recipe=recipe,
            text=self.calibration,
            text_name="wikitext2-train-part.raw",
            seed=label["seed"],
            overwrite=True,
            **options,
        )
        dense = self.source.model
        if self._dense is None:
            self._dense = self.measured(dense, "_dense")
        student = dense_model(folder).to(dense.device)
        kl, top1 = divergence(dense, student, self.corpora[0][: 8 * 2048].view(-1, 2048))
        run = checkpoint.settings.recipe
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return {
            **label,
            "true_bpw": round(checkpoint.settings.true_bpw, 4),
            **self.measured(student),
            **self._dense,
            "kl": round(kl, 4),
            "top1": round(top1, 4),
            "file_mb": round(size / 1e6, 2),
            "zero_shot_items": self.items,
            **{name: run[name] for name in ("seconds", "stage_seconds", "peak_mb", "kd_loss", "undone")},
        }

    def rounded_row(self, label: dict[str, Any]) -> dict[str, Any]:
        """Measure round-to-nearest at as many bits as the label's rate says."""
        model, bits = self.source.model, int(label["target_bpw"])
        names = self.source.family.layer_names(self.source.decoder.num_layers)
        shapes = [tuple(model.get_submodule(name).weight.shape) for name in names]
        stored = sum(stored_bits((m, n), bits) for m, n in shapes)
        weights = sum(m * n for m, n in shapes)
        others = sum(parameter.numel() for parameter in model.parameters()) - weights
        cut = self.corpora[0][: 8 * 2048].view(-1, 2048)
        dense = copy.deepcopy(model)
        with rounded_layers(model, names, bits):
            kl, top1 = divergence(dense, model, cut)
            figures = self.measured(model)
        size = round(stored / 8e6 + others * 2 / 1e6, 2)
        return {
            **label,
            "true_bpw": round(stored / weights, 4),
            **figures,
            "kl": round(kl, 4),
            "top1": round(top1, 4),
            "file_mb": size,
            "zero_shot_items": self.items,
        }


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
                extra = {**(REDUCED[name] if schedule == "reduced" else {}), **settings}
                recipe = Recipe.preset("full" if name == "default" else name, **extra)
                text = " ".join([*([schedule] if schedule else []), *changes])
                values = (model, name, text, windows, bpw, seed)
                yield dict(zip(_KEY, values, strict=True)), recipe


@click.command()
@click.argument("model")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option(
    "--recipe", "--preset", "recipes", multiple=True, default=("quick",), show_default=True, help="May be repeated."
)
@click.option("--schedule", type=click.Choice(["", "reduced"]), default="", help="Of default and official.")
@click.option("--bpw", "bpws", type=float, multiple=True, default=(2.0,), show_default=True, help="May be repeated.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="May be repeated.")
@click.option("--rtn", "rounded", type=int, multiple=True, help="Also round-to-nearest at so many bits.")
@click.option("--windows", default=32, show_default=True, help="Test windows of 2048 tokens on each corpus.")
@click.option("--items", default=0, show_default=True, help="Items of each zero-shot set; 0 leaves them out.")
@click.option("--set", "changes", multiple=True, help="Recipe setting, name=value (JSON).")
@click.option("--device", default="auto", show_default=True)
@click.option("--compute-dtype", default="auto", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to the figure file quality.json.")
@click.option("--figures", type=click.Path(path_type=Path), default=FOLDER, help="Folder of the figure file.")
@click.option("--merge", type=click.Path(path_type=Path, exists=True), help="Only take over the rows of this file.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the last checkpoint here.")
def main(
    model: str,
    texts: Path,
    recipes: tuple[str, ...],
    schedule: str,
    bpws: tuple[float, ...],
    seeds: tuple[int, ...],
    rounded: tuple[int, ...],
    windows: int,
    items: int,
    changes: tuple[str, ...],
    device: str,
    compute_dtype: str,
    append: bool,
    figures: Path,
    merge: Path | None,
    output: Path | None,
) -> None:
    """Compress MODEL and print one row a recipe, rate and seed."""
    if merge is not None:
        click.echo(f"{merge_rows('quality', merge, figures)} rows taken over")
        return
    path = figures / "quality.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if append and path.is_file() else []
    there = {tuple(row.get(key) for key in _KEY) for row in old}
    with load_model(model) as source, tempfile.TemporaryDirectory() as scratch:
        bench = Bench(source, texts, windows, items)
        options = {"device": device, "compute_dtype": compute_dtype}
        for label, recipe in _wanted(source.name, recipes, schedule, changes, bpws, seeds, windows):
            if tuple(label.values()) in there:
                continue
            row = bench.row(label, recipe, options, output or Path(scratch) / "checkpoint")
            if append:
                append_rows("quality", [row], folder=figures)
            click.echo(json.dumps(row))
        for bits in rounded:
            label = dict(zip(_KEY, (source.name, "rtn", "", windows, float(bits), 0), strict=True))
            if tuple(label.values()) in there:
                continue
            source.model.to("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
            row = bench.rounded_row(label)
            if append:
                append_rows("quality", [row], folder=figures)
            click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
