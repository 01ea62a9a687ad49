# SPDX-License-Identifier: Apache-2.0
"""What keeping the state of a compression run costs, and how soon an interrupted run is where it was.

    python -m benchmarks.resume MODEL [--blocks 10] [--append]

Runs the `quick` recipe, stops it after some blocks and resumes it. A block's time is that of the recipe; writing is the
time inside of the state's writes (file, flush, rename); returning is from the resumed run's start, loading included, to
the block at which the first was stopped.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import click

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.compression.options import Recipe
from nanoquant_edge.compression.pipeline import compress
from nanoquant_edge.compression.resume import FinishedBlock, RunState


class Stopped(Exception):
    """The run was long enough."""


def measure(model: Path, text: Path, blocks: int, bpw: float) -> dict[str, Any]:
    """One row's figures."""
    writes: list[float] = []
    finished: list[float] = []
    write, keep, found = RunState._write, RunState.keep_block, RunState.block

    def timed_write(self: RunState, *given: Any) -> None:
        begin = time.perf_counter()
        write(self, *given)
        writes.append(time.perf_counter() - begin)

    def keep_and_stop(self: RunState, index: int, block: FinishedBlock) -> None:
        keep(self, index, block)
        finished.append(time.perf_counter())
        if index + 1 == blocks:
            raise Stopped(self.describe())

    def stop_at_new(self: RunState, index: int, *given: Any) -> FinishedBlock | None:
        block = found(self, index, *given)
        if block is None:
            raise Stopped
        return block

    with tempfile.TemporaryDirectory() as folder:
        options = {"bpw": bpw, "recipe": Recipe.preset("quick"), "calibration": text, "device": "cpu"}
        first = time.perf_counter()
        with (
            mock.patch.object(RunState, "_write", timed_write),
            mock.patch.object(RunState, "keep_block", keep_and_stop),
        ):
            try:
                compress(model, Path(folder) / "c", **options)
            except Stopped as stopped:
                state = str(stopped)
        files = list((Path(folder) / "c.resume").glob("block-*"))
        size = statistics.mean(path.stat().st_size for path in files) / 1e6
        again = time.perf_counter()
        with mock.patch.object(RunState, "block", stop_at_new):
            try:
                compress(model, Path(folder) / "c", resume=True, **options)
            except Stopped:
                back = time.perf_counter() - again
    each = [after - before for before, after in itertools.pairwise(finished)]
    return {
        "model": model.stem,
        "recipe": "quick",
        "target_bpw": bpw,
        "blocks": blocks,
        "state": state.split(": ", 1)[-1],
        "block_mb": round(size, 3),
        "block_s": round(statistics.median(each), 2),
        "write_s": round(statistics.median(writes[1:]), 4),
        "write_share": round(statistics.median(writes[1:]) / statistics.median(each), 5),
        "until_stopped_s": round(finished[-1] - first, 1),
        "returned_s": round(back, 1),
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
