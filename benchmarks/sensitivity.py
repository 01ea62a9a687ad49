# SPDX-License-Identifier: Apache-2.0
"""Ranks from measured sensitivities beside even ones: what the power laws say they save.

    python -m benchmarks.sensitivity MODEL --every 3 --append

One row a layer (squared weighted error at three ranks, exponent of the power law, ranks), and a row named "all" with
the predicted error over that of even ranks, and the time of the measurement over that of LB-ADMM with 400 steps, which
is taken on the first block, as is the error at the even rank then. What it does to perplexity is in the quality table.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import append_rows
from nanoquant_edge.compression import PRESETS
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.calibrate.ranks import allocate_ranks
from nanoquant_edge.compression.calibrate.sensitivities import (
    fit_power_law,
    measured_errors,
    rank_shares,
    ranks_to_measure,
)
from nanoquant_edge.compression.calibrate.text import read_text, text_windows
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.run import Run
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.rates import layer_bits
from nanoquant_edge.models.tensors import linear_at


@click.command()
@click.argument("model")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--every", default=1, show_default=True, help="Only every so many blocks, and the last.")
@click.option("--windows", default=4, show_default=True)
@click.option("--length", default=512, show_default=True, help="Tokens a window.")
@click.option("--depth", default=PRESETS["full"].rank_depth, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/sensitivity.json.")
def main(
    model: str,
    texts: Path,
    bpw: float,
    every: int,
    windows: int,
    length: int,
    depth: float,
    device: str,
    append: bool,
) -> None:
    """Measure sensitivities of MODEL and print what ranks they make."""
    full = PRESETS["full"]
    run = Run(full, torch.device(device))
    with load_model(model) as source:
        dense = source.model.to(run.device).requires_grad_(False)
        count, kinds = source.decoder.num_layers, len(source.family.linears)
        blocks = {name: number // kinds for number, name in enumerate(source.family.layer_names(count))}
        blocks = {name: block for name, block in blocks.items() if block % every == 0 or block == count - 1}
        linears = {name: linear_at(dense, name) for name in blocks}
        text = read_text(texts / "wikitext2-train-part.raw")
        calibration = text_windows(source.tokenizer, text, windows=windows, length=length, seed=0)
        importances = collect_importances(dense, linears, calibration, run)
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in linears.items()}
        even = allocate_ranks(shapes, blocks, bpw=bpw)
        started = time.monotonic()
        errors = measured_errors(linears, importances, even, run)
        seconds = time.monotonic() - started
        started = time.monotonic()
        after: dict[str, float] = {}
        for name in list(linears)[:kinds]:
            inputs, outputs = importances[name].inputs.to(run.device), importances[name].outputs.to(run.device)
            weight, settings = linears[name].weight, full.admm(torch.float32)
            factors = factorize(weight, even[name], inputs=inputs, outputs=outputs, settings=settings)
            after[name] = factors.error**2 * float((weight.square() @ inputs).double() @ outputs.double())
        whole = (time.monotonic() - started) * len(linears) / kinds
    shares, saved = rank_shares(errors, even, shapes)
    laws = {
        name: fit_power_law(ranks_to_measure(even[name]), row) for name, row in zip(even, errors.tolist(), strict=True)
    }
    ways = {
        "measured": allocate_ranks(shapes, blocks, bpw=bpw, shares=shares),
        "measured_and_depth": allocate_ranks(shapes, blocks, bpw=bpw, depth=depth, shares=shares),
    }

    def total(ranks: dict[str, int]) -> float:
        return sum(law(ranks[name]) for name, law in laws.items())

    weights = sum(m * n for m, n in shapes.values())
    label = {"model": source.name, "target_bpw": bpw, "windows": windows, "length": length}
    rows: list[dict[str, Any]] = [
        {
            **label,
            "layer": name,
            "errors": [float(f"{value:.4g}") for value in row],
            **({"error_400": float(f"{after[name]:.4g}")} if name in after else {}),
            "exponent": round(laws[name].exponent, 3),
            "even": even[name],
            **{way: ranks[name] for way, ranks in ways.items()},
        }
        for name, row in zip(even, errors.tolist(), strict=True)
    ]
    summary: dict[str, Any] = {**label, "layer": "all", "layers": len(even), "saved_before_rounding": round(saved, 4)}
    for way, ranks in {"even": even, **ways}.items():
        bits = sum(layer_bits(*shapes[name], rank) for name, rank in ranks.items())
        summary[way] = {"true_bpw": round(bits / weights, 4), "error_over_even": round(total(ranks) / total(even), 4)}
    summary.update(seconds=round(seconds, 1), over_admm_seconds=round(seconds / whole, 3))
    for row in [*rows, summary]:
        click.echo(json.dumps(row))
    if append:
        append_rows("sensitivity", [*rows, summary])


if __name__ == "__main__":
    main()
