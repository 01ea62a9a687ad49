# SPDX-License-Identifier: Apache-2.0
"""Compress a model and measure what it lost: perplexity on two corpora, KL and top-1 agreement with the dense model.

    python -m benchmarks.quality MODEL --texts ../shared/data --preset quick --bpw 2.0 [--set kd_epochs=2] [--append]

Calibration is the WikiText-2 training part; the corpora are the WikiText-2 test split and Wikipedia passages.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import append_rows
from nanoquant_edge.compression import Recipe, compress_source
from nanoquant_edge.compression.calibration import read_text
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.validation.dense import dense_model
from nanoquant_edge.validation.perplexity import chunked_logits, perplexity


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


@click.command()
@click.argument("model")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--preset", default="quick", show_default=True)
@click.option("--bpw", type=float, default=2.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--windows", default=32, show_default=True, help="Test windows of 2048 tokens on each corpus.")
@click.option("--set", "changes", multiple=True, help="Recipe setting, name=value (JSON).")
@click.option("--device", default="auto", show_default=True)
@click.option("--compute-dtype", default="auto", show_default=True)
@click.option("--append", is_flag=True, help="Add the row to docs/figures/quality.json.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the checkpoint here.")
def main(
    model: str,
    texts: Path,
    preset: str,
    bpw: float,
    seed: int,
    windows: int,
    changes: tuple[str, ...],
    device: str,
    compute_dtype: str,
    append: bool,
    output: Path | None,
) -> None:
    """Compress MODEL and print one row."""
    settings = {name: json.loads(value) for name, value in (change.split("=", 1) for change in changes)}
    recipe = Recipe.preset(preset, **settings)
    scratch = tempfile.TemporaryDirectory()
    folder = output or Path(scratch.name) / "checkpoint"
    with load_model(model) as source:
        corpora = [read_text(texts / name) for name in ("wikitext2-test.raw", "wikipedia-passages.txt")]
        test, second = (
            torch.tensor(source.tokenizer(text, verbose=False)["input_ids"])[: windows * 2048] for text in corpora
        )
        checkpoint = compress_source(
            source,
            folder,
            bpw=bpw,
            recipe=recipe,
            text=read_text(texts / "wikitext2-train-part.raw"),
            text_name="wikitext2-train-part.raw",
            seed=seed,
            device=device,
            compute_dtype=compute_dtype,
            overwrite=True,
        )
        dense = source.model
        student = dense_model(folder).to(dense.device)
        kl, top1 = divergence(dense, student, test[: 8 * 2048].view(-1, 2048))
        run = checkpoint.settings.recipe
        row = {
            "model": source.name,
            "recipe": preset,
            "schedule": " ".join(changes),
            "n_windows": windows,
            "target_bpw": bpw,
            "true_bpw": round(checkpoint.settings.true_bpw, 4),
            "seed": seed,
            "ppl": round(perplexity(student, test), 3),
            "ppl2": round(perplexity(student, second), 3),
            "ppl_dense": round(perplexity(dense, test), 3),
            "ppl2_dense": round(perplexity(dense, second), 3),
            "kl": round(kl, 4),
            "top1": round(top1, 4),
            "file_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 2),
            "seconds": run["seconds"],
            "peak_mb": run["peak_mb"],
            "kd_loss": run["kd_loss"],
        }
    if append:
        append_rows("quality", [row])
    click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
