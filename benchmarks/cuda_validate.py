# SPDX-License-Identifier: Apache-2.0
"""The ladder of `nq-edge validate --device cuda`, over tables and caches, for checkpoints and a tiny model a family.

    python -m benchmarks.cuda_validate smollm2 gemma --text wikitext2-test.raw --tiny --append

One row a checkpoint, table and cache, in docs/figures/cuda_validate.json: each step's outcome and figures. A tiny
random model has its own text, sampled from it, and fewer windows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option, listed
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.cuda.device import Device
from nanoquant_edge.validation import ValidationOptions, validate


def row(folder: Path, name: str, options: ValidationOptions) -> dict[str, Any]:
    """One validation, or why there was none."""
    entry: dict[str, Any] = {"model": name, "table": options.table or "stored", "cache_bits": options.cache_bits}
    try:
        report = validate(folder, options=options)
    except NqEdgeError as error:
        return {**entry, "status": "refused", "why": str(error)}
    steps = {step.name: {"status": step.status, **step.figures} for step in report.steps.values()}
    return {
        **entry,
        "dtype": report.dtype,
        "status": report.status,
        "first_diverging": report.first_diverging,
        "seconds": round(report.seconds, 1),
        "windows": report.windows,
        "window_length": report.window_length,
        "text": report.text,
        "steps": steps,
    }


def tiny_models(folder: Path) -> list[tuple[str, Path]]:
    """A tiny random checkpoint of every family."""
    from tests.families import FAMILY_CONFIGS, family_config
    from tests.tiny import tiny_checkpoint

    made = [("tiny llama", tiny_checkpoint(folder / "llama", tie_word_embeddings=False).folder)]
    return made + [
        (f"tiny {name}", tiny_checkpoint(folder / name, **family_config(name)).folder) for name in FAMILY_CONFIGS
    ]


@click.command()
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 text of the windows.")
@click.option("--tables", default="stored,int8,int4", callback=listed(str), show_default=True)
@click.option("--caches", default="16,8", callback=listed(int), show_default=True)
@click.option("--dtypes", default="float16", callback=listed(str), show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny random model of every family too.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@figures_option
def main(
    checkpoints: tuple[Path, ...],
    text: Path | None,
    *,
    tables: tuple[str, ...],
    caches: tuple[int, ...],
    dtypes: tuple[str, ...],
    tiny: bool,
    append: bool,
    folder: Path,
) -> None:
    """Validate CHECKPOINTS on the first GPU."""
    device = Device()
    gpu = device.name
    device.close()
    with tempfile.TemporaryDirectory() as scratch:
        subjects = [(Checkpoint(path).name, path, text) for path in checkpoints]
        if tiny:
            subjects += [(name, path, None) for name, path in tiny_models(Path(scratch))]
        for name, path, windows in subjects:
            for dtype in dtypes:
                for table in tables:
                    for bits in caches if table == "stored" else caches[:1]:
                        held = None if table == "stored" else table
                        options = ValidationOptions(
                            device="cuda", dtype=dtype, table=held, cache_bits=bits, text=windows
                        )
                        found = {**row(path, name, options), "gpu": gpu}
                        figures = {k: v for k, v in found.items() if k not in ("steps", "text", "gpu")}
                        click.echo("  ".join(f"{key}={value}" for key, value in figures.items()))
                        for step, values in found.get("steps", {}).items():
                            click.echo(f"    {step}: {values}")
                        if append:
                            append_rows("cuda_validate", [found], 1, folder)


if __name__ == "__main__":
    main()
