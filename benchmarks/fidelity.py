# SPDX-License-Identifier: Apache-2.0
"""Our importances and LB-ADMM beside a checkpoint that the official code made: errors and units, layer by layer.

    python -m benchmarks.fidelity OFFICIAL.pt --base MODEL --append

Windows and ranks are the official checkpoint's (docs/METHOD.md, section 13). `error` is the plain squared relative
error of the weight, which the official code logs (its log leaves out the spread that the exported scales lose, so it is
a little lower); `weighted` the same under our importances. Ours are before tuning, the official ones after it, so only
like sizes can be expected. `units` is the root of the official input times output importances over ours, as the scales'
ratio gives it (docs/METHOD.md, section 5.4): it decides what one step of the latents means.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.figures import append_rows, figures_option, listed
from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.calibrate.importances import Importance, collect_importances
from nanoquant_edge.compression.calibrate.text import read_text, text_windows
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.recipe import REDUCED
from nanoquant_edge.compression.run import Run
from nanoquant_edge.formats.checkpoint.layer import PackedLayer
from nanoquant_edge.importers.conversion import import_checkpoint
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.tensors import linear_at
from nanoquant_edge.system.progress import Progress


def compared(weight: Tensor, importance: Importance, official: PackedLayer, recipe: Recipe, device: Any) -> dict:
    """One row: errors of both, and the ratio of units."""
    weight, inputs, outputs = (value.to(device) for value in (weight, importance.inputs, importance.outputs))
    settings = recipe.admm(torch.float32)
    ours = factorize(weight, official.rank, inputs=inputs, outputs=outputs, settings=settings)
    theirs = torch.from_numpy(official.dense().astype("float32")).to(device)
    roots = outputs.sqrt()[:, None], inputs.sqrt()[None, :]

    def error(found: Tensor, left: Tensor | float, right: Tensor | float) -> float:
        part, whole = left * (weight - found) * right, left * weight * right
        return round(float((part.norm() / whole.norm()) ** 2), 4)

    # The scales share one product; how it is divided between them goes with that root, the other way round where the
    # layer is factorized turned.
    scales = [torch.from_numpy(v.astype("float32")).to(device) for v in (official.scale_in, official.scale_out)]
    gauges = [float(a.abs().log().mean() - b.abs().log().mean()) for a, b in (scales, (ours.scale_in, ours.scale_out))]
    power = 1 if weight.shape[0] >= weight.shape[1] else -1
    return {
        "rank": official.rank,
        "error": error(ours.dense(), 1.0, 1.0),
        "error_official": error(theirs, 1.0, 1.0),
        "weighted": error(ours.dense(), *roots),
        "weighted_official": error(theirs, *roots),
        "units": round(math.exp(power * (gauges[0] - gauges[1])), 3),
    }


@click.command()
@click.argument("official", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The dense model: folder, .gguf file or hub id.")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--blocks", default="0,1,15,29", show_default=True, callback=listed(int))
@click.option("--device", default="cpu", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/fidelity.json.")
@figures_option
def main(
    official: Path, base: str, texts: Path, blocks: tuple[int, ...], device: str, append: bool, folder: Path
) -> None:
    """Print one row for each layer of some blocks of OFFICIAL."""
    recipe = Recipe.preset("official", **REDUCED["official"])
    with tempfile.TemporaryDirectory() as scratch, load_model(base) as source:
        checkpoint = import_checkpoint(official, base, output=Path(scratch) / "checkpoint")
        model = source.model.to(device)
        names, kinds = source.family.layer_names(source.decoder.num_layers), len(source.family.linears)
        linears = {name: linear_at(model, name) for number, name in enumerate(names) if number // kinds in blocks}
        text = read_text(texts / "wikitext2-train-part.raw")
        windows = text_windows(
            source.tokenizer,
            text,
            windows=recipe.windows,
            length=recipe.window_length,
            seed=0,
            choice=recipe.window_choice,
        )
        shown = Progress(lambda fraction, text: click.echo(f"{text} {fraction:.0%}", err=True), prefix="importances")
        importances = collect_importances(model, linears, windows, Run(recipe, progress=shown))
        rows = []
        for name, layer in linears.items():
            row = compared(layer.weight.detach(), importances[name], checkpoint.layer(name), recipe, device)
            rows.append({"model": source.name, "layer": name, **row})
            click.echo(json.dumps(rows[-1]))
    if append:
        append_rows("fidelity", rows, folder=folder)


if __name__ == "__main__":
    main()
