# SPDX-License-Identifier: Apache-2.0
"""Tune a finished checkpoint's scales from end to end, and measure what each variant gains.

    python -m benchmarks.end_to_end MODEL CHECKPOINT --variant '{"tokens": 4e6, "lr": 2e-3}' --variant ... --append

All variants begin with the same checkpoint. A variant's fields: `tokens`, `lr`, `batch` (windows of 2048 tokens) and
`chat` (share of the windows that are conversations of the dense model), `signs` (their learning rate) and `mid` (true
for a scale a rank). Text comes from `--text`, files or folders with weights.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.answers import Answers
from benchmarks.figures import append_rows, figures_option
from benchmarks.quality_measure import Measure
from nanoquant_edge.compression.calibrate.sources import CalibrationText, TextSource
from nanoquant_edge.compression.calibrate.windows import fresh_windows
from nanoquant_edge.compression.recipe import Recipe
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.end_to_end import tune_end_to_end
from nanoquant_edge.compression.tune.layers import SignFactors
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.loading import load_model

#: A variant's fields -> settings of a recipe.
_SETTINGS = {
    "tokens": "end_to_end_tokens",
    "lr": "end_to_end_lr",
    "batch": "end_to_end_batch",
    "chat": "end_to_end_chat_share",
    "signs": "end_to_end_sign_lr",
    "mid": "end_to_end_mid",
}


def factors_of(checkpoint: Checkpoint) -> dict[str, SignFactors]:
    """A checkpoint's layers as the tuning takes them."""
    found = {}
    for name in checkpoint.layers:
        layer = checkpoint.layer(name)
        u, v = (torch.from_numpy(words.copy()) for words in (layer.u_packed, layer.v_packed))
        scales = (torch.from_numpy(scale.astype("float32")) for scale in (layer.scale_out, layer.scale_in))
        bias = None if layer.bias is None else torch.from_numpy(layer.bias.astype("float32"))
        found[name] = SignFactors.from_words(u, v, *scales, bias)
        if layer.scale_mid is not None:
            found[name].scale_mid = torch.from_numpy(layer.scale_mid.astype("float32"))
    return found


def with_factors(model: Any, factors: dict[str, SignFactors]) -> Any:
    """A copy of the dense model with the weights that the factors stand for."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in factors.items():
            layer = made.get_submodule(name)
            layer.weight.copy_(value.dense(layer.weight.device))
    return made


@click.command()
@click.argument("model")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--text", "sources", multiple=True, required=True, help="Training text, PATH or PATH=WEIGHT; repeatable.")
@click.option("--variant", "variants", multiple=True, required=True, help="JSON object, see above; repeatable.")
@click.option("--windows", default=32, show_default=True, help="Test windows of 2048 tokens on each corpus.")
@click.option("--prompts", default=200, show_default=True, help="Chat prompts; 0 leaves answers out.")
@click.option("--seed", default=0, show_default=True, help="Random seed for the windows and their order.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file end_to_end.json.")
@figures_option
def main(
    model: str,
    checkpoint: Path,
    texts: Path,
    sources: tuple[str, ...],
    variants: tuple[str, ...],
    windows: int,
    prompts: int,
    seed: int,
    append: bool,
    folder: Path,
) -> None:
    """Tune CHECKPOINT, which was made from MODEL, in several ways."""
    wanted = [json.loads(variant) for variant in variants]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with load_model(model) as source:
        dense = source.move_to(device)
        measure = Measure(source.tokenizer, source.config, texts, windows, 0)
        answers = Answers(source.tokenizer, prompts) if prompts else None
        states = measure.dense_states(dense)
        text = CalibrationText.read([TextSource.parse(name) for name in sources])
        assert text is not None
        opened = Checkpoint(checkpoint)
        if answers is not None:
            click.echo(json.dumps({"dense": answers.dense(dense)}))
        for variant in [{}, *wanted]:  # the checkpoint as it is comes first
            factors = factors_of(opened)
            settings = {_SETTINGS[name]: value for name, value in {"chat": 0.0, **variant}.items()}
            settings["end_to_end_tokens"] = int(settings.get("end_to_end_tokens", 0))
            run = Run(recipe=Recipe.preset("max", **settings), device=device, dtype=dtype, seed=seed)
            started = time.monotonic()
            losses: dict[str, Any] = {}
            if variant:
                chosen = fresh_windows(source, text, run)
                blocks = dense.get_submodule(source.family.blocks)
                outcome = tune_end_to_end(dense, blocks, factors, windows=chosen, run=run)
                losses |= {"loss": round(outcome.last, 4), "flips": outcome.flips, "taken_back": outcome.taken_back}
            seconds = time.monotonic() - started
            tuned = with_factors(dense, factors)
            row = {
                "model": source.name,
                "checkpoint": checkpoint.name,
                "variant": json.dumps(variant),
                "text": " ".join(Path(name).name for name in sources),
                "n_windows": windows,
                "seed": seed,
                **measure.compressed(tuned, dense, states),
                **(answers.compressed(tuned, dense) if answers else {}),
                **losses,
                "seconds": round(seconds, 1),
            }
            del tuned
            click.echo(json.dumps(row))
            if append:
                append_rows("end_to_end", [row], folder=folder)


if __name__ == "__main__":
    main()
