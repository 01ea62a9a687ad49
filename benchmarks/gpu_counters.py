# SPDX-License-Identifier: Apache-2.0
"""What the hardware counters say about the CUDA kernels: one row a launch, through Nsight Compute.

    python -m benchmarks.gpu_counters --layers llama-70b --rows 1 [--ways exact] [--append]

Needs `ncu` and the right to read counters. Nsight Compute runs each launch alone and several times over, with caches
flushed and clocks as they are: a launch's time here leaves out what overlaps in practice (benchmarks.gpu_kernels
times that). The shares are of what the hardware can sustain; stalls are warps waiting, in warps per issued instruction
of a scheduler, largest first.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option, listed

SECTIONS = ("LaunchStats", "SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis", "Occupancy")
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)_per_issue_active\.ratio")

#: field of a row and the counter behind it
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "dram_pct": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "memory_pct": "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_pct": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "issued_per_cycle": "smsp__issue_active.avg.per_cycle_active",
    "warps_per_scheduler": "smsp__warps_active.avg.per_cycle_active",
    "eligible_warps": "smsp__warps_eligible.avg.per_cycle_active",
    "registers": "launch__registers_per_thread",
    "blocks": "launch__grid_size",
    "threads": "launch__block_size",
    "waves": "launch__waves_per_multiprocessor",
    "shared_bytes": "launch__shared_mem_per_block_dynamic",
}
MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
BYTES = {"byte/block": 1.0, "Kbyte/block": 1e3, "Mbyte/block": 1e6}


def run_layer(layer: str, rows: int, way: str) -> None:
    """One profiled call of a layer, after two others."""
    import torch

    from benchmarks.gpu_kernels import SHAPES, WAYS
    from benchmarks.random_layer import random_layer

    shape = next(shape for shape in SHAPES if shape.name == layer)
    algorithm, precision = WAYS[way]
    generator = torch.Generator("cuda").manual_seed(0)
    group = random_layer(
        shape.out, shape.into, rank=shape.rank, generator=generator, algorithm=algorithm, precision=precision
    )
    x = torch.randn(rows, shape.into, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, group.width, device="cuda", dtype=torch.bfloat16)
    for call in range(3):
        torch.cuda.synchronize()
        if call == 2:
            torch.cuda.profiler.start()
        group(x, out)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def read_counters(text: str) -> list[dict[str, Any]]:
    """Rows of Nsight Compute's raw page as CSV; what stands around it (its own messages) is skipped.

    Raises:
        click.ClickException: there is no table in it; the text says why.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise click.ClickException("Nsight Compute measured nothing:\n" + text[-2000:])
    table = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    units, launches = table[0], table[1:]
    rows = []
    for launch in launches:
        numbers = {key: _number(value) for key, value in launch.items() if key is not None}
        row: dict[str, Any] = {"kernel": _short(launch["Kernel Name"])}
        for name, counter in COUNTERS.items():
            value = numbers.get(counter)
            if value is None:
                continue
            unit = units.get(counter, "")
            scale = MICROSECONDS[unit] if name == "us" else BYTES.get(unit, 1.0)
            row[name] = round(value * scale, 3)
        stalls = {
            match[1]: value for key, value in numbers.items() if (match := STALL.fullmatch(key)) and value is not None
        }
        largest = sorted(stalls.items(), key=lambda item: -item[1])[:5]
        row["stalls"] = {name: round(value, 2) for name, value in largest}
        rows.append(row)
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def _short(name: str) -> str:
    """A kernel's name without its parameters."""
    return re.sub(r"\(.*", "", name.replace("(anonymous namespace)::", "").replace("void ", "")).strip()


@click.command()
@click.option("--layers", default="llama", show_default=True, help="Only layers whose name begins so.")
@click.option("--rows", default="1", callback=listed(int), show_default=True)
@click.option("--ways", default="exact", callback=listed(str), show_default=True, help="As of benchmarks.gpu_kernels.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@figures_option
@click.option("--child", hidden=True, is_flag=True, help="Run the launches; what is profiled.")
def main(layers: str, rows: tuple[int, ...], ways: tuple[str, ...], append: bool, folder: Path, child: bool) -> None:
    """Print and store counters of every launch."""
    if child:
        run_layer(layers, rows[0], ways[0])
        return
    ncu = shutil.which("ncu")
    if ncu is None:
        raise click.ClickException("ncu is not installed: it comes with CUDA's Nsight Compute.")
    from benchmarks.gpu_kernels import SHAPES

    made = []
    for shape in (shape for shape in SHAPES if shape.name.startswith(layers)):
        for count in rows:
            for way in ways:
                profile = [ncu, "--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"]
                profile += [part for section in SECTIONS for part in ("--section", section)]
                call = [sys.executable, "-m", "benchmarks.gpu_counters", "--child", "--layers", shape.name]
                call += ["--rows", str(count), "--ways", way]
                done = subprocess.run(profile + call, capture_output=True, text=True, check=False)
                for row in read_counters(done.stdout + done.stderr):
                    made.append({"layer": shape.name, "rows": count, "way": way, **row})
                    click.echo("  ".join(f"{key}={value}" for key, value in made[-1].items()))
    if append:
        append_rows("gpu_counters", made, 1, folder)


if __name__ == "__main__":
    main()
