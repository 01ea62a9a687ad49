# SPDX-License-Identifier: Apache-2.0
"""What keeping the state of a compression run costs, and how soon an interrupted run is where it was.

    python -m benchmarks.resume MODEL [--blocks 10] [--append]

Runs the `quick` recipe, stops it after some blocks and resumes it. A block's time is from its beginning to that of the
next; writing is the time inside of the state's writes (file, flush, rename); returning is from the resumed run's start,
loading included, to the block at which the first was stopped.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import click

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.compression import CompressOptions, compress
from nanoquant_edge.compression.resume import RunState


class Stopped(Exception):
    """The run was long enough."""


def until_block(number: int, begun: list[float]) -> Callable[[float, str], None]:
    """A progress function that notes when each block begins, and stops the run at block `number`."""

    def show(_fraction: float, text: str) -> None:
        if text.startswith(f"block {len(begun) + 1} of"):
            begun.append(time.perf_counter())
        if len(begun) == number:
            raise Stopped

    return show


def measure(model: Path, text: Path, blocks: int, bpw: float) -> dict[str, Any]:
    """One row's figures."""
    writes: list[float] = []
    write = RunState.write

    def timed_write(self: RunState, *given: Any) -> None:
        begin = time.perf_counter()
        write(self, *given)
        writes.append(time.perf_counter() - begin)

    def seconds_until_stopped(options: CompressOptions, begun: list[float]) -> float:
        start = time.perf_counter()
        try:
            compress(model, output, options, progress=until_block(blocks + 1, begun))
        except Stopped:
            return time.perf_counter() - start
        raise click.UsageError(f"{model} has no more than {blocks} blocks.")

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "c"
        options = CompressOptions(bpw=bpw, recipe="quick", calibration=text, device="cpu")
        begun: list[float] = []
        with mock.patch.object(RunState, "write", timed_write):
            first = seconds_until_stopped(options, begun)
        sizes = {path.name: path.stat().st_size / 1e6 for path in output.with_name("c.resume").iterdir()}
        again = seconds_until_stopped(options.changed(resume=True), [])
    block_sizes = [size for name, size in sizes.items() if name.startswith("block-")]
    block_times = [after - before for before, after in itertools.pairwise(begun)]
    return {
        "model": model.stem,
        "recipe": "quick",
        "target_bpw": bpw,
        "blocks": blocks,
        "state": f"{len(block_sizes)} finished blocks, {sum(sizes.values()):.1f} MB",
        "block_mb": round(statistics.mean(block_sizes), 3),
        "block_s": round(statistics.median(block_times), 2),
        "write_s": round(statistics.median(writes[1:]), 4),
        "write_share": round(statistics.median(writes[1:]) / statistics.median(block_times), 5),
        "until_stopped_s": round(first, 1),
        "returned_s": round(again, 1),
    }


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--text", type=click.Path(exists=True, path_type=Path), required=True, help="Calibration text.")
@click.option("--blocks", default=10, show_default=True, help="Stop after so many.")
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--append", is_flag=True, help="Add the row to the figure file.")
@figures_option
def main(model: Path, text: Path, blocks: int, bpw: float, append: bool, folder: Path) -> None:
    """Print and store one row."""
    row = measure(model, text, blocks, bpw)
    click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
    if append:
        append_rows("resume", [row], 1, folder)


if __name__ == "__main__":
    main()
