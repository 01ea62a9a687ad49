# SPDX-License-Identifier: Apache-2.0
"""Perplexity of an imported official checkpoint, against what the official code measured on it.

    python -m benchmarks.official_import OFFICIAL.pt --base MODEL --texts FOLDER [--windows 32] [--append]

MODEL is the dense model; FOLDER holds wikitext2-test.raw. Windows are 2048 tokens, float32 by
default; the official code measured in bfloat16.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.figures import append_rows
from nanoquant_edge.compression.calibrate.text import read_text
from nanoquant_edge.importers.conversion import import_checkpoint
from nanoquant_edge.validation.dense import dense_model
from nanoquant_edge.validation.perplexity import perplexity


@click.command()
@click.argument("official", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The dense model: folder, .gguf file or hub id.")
@click.option("--texts", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--windows", default=32, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--expected", type=float, help="What the official code measured on these windows.")
@click.option("--append", is_flag=True, help="Add the row to docs/figures/official_import.json.")
def main(
    official: Path, base: str, texts: Path, windows: int, dtype: str, expected: float | None, append: bool
) -> None:
    """Import OFFICIAL and print one row."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        checkpoint = import_checkpoint(official, base, output=Path(scratch) / "checkpoint")
        imported = time.perf_counter() - start
        text = read_text(texts / "wikitext2-test.raw")
        ids = torch.tensor(AutoTokenizer.from_pretrained(checkpoint.folder)(text, verbose=False)["input_ids"])
        model = dense_model(checkpoint.folder).to(getattr(torch, dtype))
        start = time.perf_counter()

        def shown(part: float, found: str) -> None:
            click.echo(f"{part:5.1%} {found}", err=True)

        row = {
            "file": official.name,
            "base": Path(base).name,
            "layers": len(checkpoint.layers),
            "true_bpw": round(checkpoint.settings.true_bpw, 4),
            "n_windows": windows,
            "dtype": dtype,
            "ppl": round(perplexity(model, ids[: windows * 2048], progress=shown), 2),
            "ppl_official": expected,
            "import_seconds": round(imported, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }
    if append:
        append_rows("official_import", [row])
    click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
