# SPDX-License-Identifier: Apache-2.0
"""How fast a dense model writes its own calibration text, and what memory that takes.

    python -m benchmarks.own_text MODEL --tokens 1e6 --length 2048 --append

Two rows: plain text from the start token, and conversations in the model's chat format where it has one. Beside them
the shares that tell whether the text is sound: how many conversations there are, how many of their answers end by
themselves, and repeated 4-grams of a window.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.answers import repeated_share
from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.compression.calibrate.conversations import conversation_windows, has_chat_format
from nanoquant_edge.compression.calibrate.own_text import own_windows
from nanoquant_edge.compression.calibrate.writing import end_tokens
from nanoquant_edge.compression.execution.device import chosen_device, peak_mb
from nanoquant_edge.models.loading import SourceModel, load_model
from nanoquant_edge.system.progress import Progress


def _timed(make: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, dict[str, float]]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.monotonic()
    windows = make()
    seconds = time.monotonic() - started
    figures = {"tokens": windows.numel(), "seconds": round(seconds, 2)}
    return windows, {**figures, "tps": round(windows.numel() / seconds), "peak_mb": peak_mb(device)}


def _kinds(source: SourceModel, windows: int, length: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    kinds: dict[str, Callable[[], Tensor]] = {"text": lambda: own_windows(source, windows, length, seed=seed)}
    if has_chat_format(source.tokenizer):
        kinds["conversations"] = lambda: conversation_windows(
            source.model, source.tokenizer, windows, length, seed=seed, text=None, progress=Progress()
        )
    return kinds


@click.command()
@click.argument("model")
@click.option("--tokens", type=float, default=1e6, show_default=True, help="Of each kind.")
@click.option("--length", default=2048, show_default=True, help="Tokens of a window.")
@click.option("--kind", type=click.Choice(["text", "conversations"]), help="Only one of them.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--show", is_flag=True, help="Print the first window of each kind.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file own_text.json.")
@figures_option
def main(model: str, tokens: float, length: int, kind: str | None, append: bool, folder: Path, **options: Any) -> None:
    """Let MODEL write text and print how fast it was."""
    device = chosen_device(options["device"])
    windows = max(1, round(tokens / length))
    with load_model(model) as source:
        source.move_to(device)
        ends = end_tokens(source.model, source.tokenizer)
        for name, make in _kinds(source, windows, length, options["seed"]).items():
            if kind not in (None, name):
                continue
            made, figures = _timed(make, device)
            row = {
                "model": source.name,
                "kind": name,
                "length": length,
                "seed": options["seed"],
                **figures,
                "ends": int(torch.isin(made, torch.tensor(ends)).sum()),
                "repeats": round(sum(repeated_share(ids) for ids in made.tolist()) / len(made), 4),
            }
            click.echo(json.dumps(row))
            if options["show"]:
                click.echo(source.tokenizer.decode(made[0]))
            if append:
                append_rows("own_text", [row], folder=folder)


if __name__ == "__main__":
    main()
