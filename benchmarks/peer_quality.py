# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp's types lose at few bits, measured as `benchmarks.quality` measures: rows of quality.json.

    python -m benchmarks.peer_quality MODEL.gguf --python VENV/bin/python --kind Q2_K --kind IQ2_XXS --append

llama-cpp-python lives in an environment of its own (`benchmarks.cpu_peers` makes one). Each type is made from the dense
model's own GGUF file under an importance matrix: mean squares of each layer's inputs on windows of the calibration text
that our rows have too. The weights that come out are measured in float32, as our checkpoints are; `--check N` also lets
llama.cpp itself tell the perplexity of the first N windows, with activations rounded to 8 bits as in use. A row's size
is the whole file's, and its bits are those of the layers that we compress.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.figures import append_rows, figures_option
from benchmarks.quality_measure import Measure, window_figures
from nanoquant_edge.compression.calibrate.text import read_text, text_windows
from nanoquant_edge.compression.execution.device import chosen_device
from nanoquant_edge.compression.execution.hooks import watched
from nanoquant_edge.models.gguf.layout import LINEARS, parameter_name
from nanoquant_edge.models.loading import SourceModel, load_model

__all__ = ["input_squares", "layer_bits"]

_SCRIPT = Path(__file__).with_name("peer_llama.py")
_LENGTH = 2048


@torch.no_grad()
def input_squares(source: SourceModel, windows: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of all compressed layers, float32 (inputs,), by llama.cpp's name of their weight."""
    family, blocks = source.family, source.decoder.num_layers
    named = {}
    for block in range(blocks):
        for short in LINEARS:
            name = f"blk.{block}.{short}.weight"
            named[parameter_name(name, family).removesuffix(".weight")] = name
    layers = {module: source.model.get_submodule(module) for module in named}
    sums = {module: torch.zeros(layer.in_features, dtype=torch.float64) for module, layer in layers.items()}

    def watch(module: str) -> Callable[..., None]:
        def add(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            sums[module] += arguments[0].detach().double().square().flatten(0, -2).sum(0).cpu()

        return add

    with watched(layers, watch, before=True):
        for window in windows:
            source.model.base_model(input_ids=window[None].to(source.model.device), use_cache=False)
    return {named[module]: (total / windows.numel()).float().numpy() for module, total in sums.items()}


def layer_bits(file: Path) -> float:
    """Bits of a weight in the layers that we compress, mean over all of them."""
    from gguf import GGUFReader

    bits = weights = 0
    for tensor in GGUFReader(file).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[-1] == "weight" and parts[2] in LINEARS:
            bits += 8 * int(tensor.n_bytes)
            weights += int(tensor.n_elements)
    return bits / weights


def _call(python: Path, *arguments: object) -> dict[str, Any]:
    """What the other environment prints last."""
    made = subprocess.run([str(python), str(_SCRIPT), *map(str, arguments)], capture_output=True, text=True)
    if made.returncode:
        raise click.ClickException(f"{' '.join(map(str, arguments))}: {made.stderr[-800:]}")
    found: dict[str, Any] = json.loads(made.stdout.strip().splitlines()[-1])
    return found


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--python", type=click.Path(path_type=Path, exists=True), required=True, help="Of the environment.")
@click.option("--kind", "kinds", multiple=True, default=("Q2_K",), show_default=True, help="May be repeated.")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of importances and models.")
@click.option("--calibrated", default=32, show_default=True, help="Calibration windows of 2048 tokens.")
@click.option("--windows", default=32, show_default=True, help="Test windows of 2048 tokens; 0 only tells sizes.")
@click.option("--items", default=0, show_default=True, help="Items of each zero-shot set; 0 leaves them out.")
@click.option("--brief", is_flag=True, help="Only perplexity on WikiText-2, for a slow machine.")
@click.option("--check", default=0, show_default=True, help="Windows on which llama.cpp is asked too.")
@click.option("--threads", default=1, show_default=True, help="Of llama.cpp.")
@click.option("--device", default="auto", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to the figure file quality.json.")
@figures_option
def main(model: Path, python: Path, kinds: tuple[str, ...], texts: Path, work: Path, **options: Any) -> None:
    """Make MODEL (a .gguf file) in each KIND and measure it."""
    work.mkdir(parents=True, exist_ok=True)
    importances, ids = work / f"{model.stem}.importances.npz", work / f"{model.stem}.ids.npy"
    device, windows = chosen_device(options["device"]), options["windows"]
    with load_model(model) as source:
        dense = source.move_to(device)
        measure = Measure(source.tokenizer, source.config, texts, windows, options["items"]) if windows else None
        if measure is not None:
            np.save(ids, measure.corpora["ppl"][: options["check"]].numpy())
        if not importances.is_file():
            text = read_text(texts / "wikitext2-train-part.raw")
            chosen = text_windows(source.tokenizer, text, windows=options["calibrated"], length=_LENGTH, seed=0)
            np.savez(importances, **input_squares(source, chosen))  # type: ignore[arg-type]
        for kind in kinds:
            file = work / f"{model.stem}.{kind}.gguf"
            if not file.is_file():
                _call(python, "quantize", model, file, kind, importances, options["threads"])
            row: dict[str, Any] = {
                "model": source.name,
                "recipe": "llama.cpp",
                "schedule": kind,
                "n_windows": windows,
                "target_bpw": round(layer_bits(file), 2),
                "seed": 0,
                "true_bpw": round(layer_bits(file), 4),
                "file_mb": round(file.stat().st_size / 1e6, 2),
            }
            if measure is not None:
                with load_model(file) as made:
                    model_made = made.move_to(device)
                    if options["brief"]:
                        row["ppl"] = round(window_figures(model_made, measure.corpora["ppl"]).ppl, 3)
                    else:
                        row |= measure.compressed(model_made, dense, measure.dense_states(dense))
                        row["zero_shot_items"] = options["items"]
            if options["check"]:
                found = _call(python, "perplexity", file, options["threads"], _LENGTH, ids)
                row |= {"ppl_llama": round(found["ppl"], 3), "check_windows": options["check"]}
                row["llama_cpp"] = found["version"]
            click.echo(json.dumps(row))
            if options["append"]:
                append_rows("quality", [row], folder=options["folder"])


if __name__ == "__main__":
    main()
