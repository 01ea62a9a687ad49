# SPDX-License-Identifier: Apache-2.0
"""A forecast, not a measurement: one-row layer times on GPUs that this project cannot run on.

    python -m benchmarks.gpu_forecast [--append]

For each half of a layer: time = chain + max(bytes / bandwidth, instructions / issue rate, products / tensor rate).
Bytes are the packed words with their padding; instructions per tile come from the machine code that nvcc makes for the
architecture; the chain is launch, latencies and the straight path of one warp. Its constants were read off an H200
(docs/notes/gpu.md, "CUDA kernels: one row"), whose own layers stand in the table beside their measured times
(docs/figures/gpu_kernels.json): that is the check, and its spread is the least that the others may be off by. What
nobody here measured is marked assumed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option
from benchmarks.sass import disassemble, loops, path_to_store
from nanoquant_edge.devices import target_named
from nanoquant_edge.devices.forecast import gpu_of
from nanoquant_edge.devices.gpu_time import Code, Gpu, half_us, layer_us
from nanoquant_edge.models.rates import rank_for_rate

KERNELS = Path(__file__).parents[1] / "plugins" / "kernels"
SOURCE = KERNELS / "cuda" / "gemv" / "forward.cu"

#: share of the bandwidth that one layer alone reaches (assumed); whole decode steps reach less (devices/gpu_time.py)
BANDWIDTH_SHARE = 0.85


DEVICES = tuple(
    (name, gpu_of(target_named(name)))
    for name in (
        "h200",
        "jetson-orin-nano-8gb",
        "jetson-orin-nx-16gb",
        "jetson-agx-orin-64gb",
        "rtx-3050",
        "rtx-4060",
        "rtx-4090",
        "rtx-5090",
    )
)

#: (name, layers, hidden, query width, key/value width, feed-forward width)
MODELS = (
    ("qwen3-0.6b", 28, 1024, 2048, 1024, 3072),
    ("llama-3.2-1b", 16, 2048, 2048, 512, 8192),
    ("qwen3-8b", 36, 4096, 4096, 1024, 12288),
)

LAYERS = (
    ("llama-1b q/o", 2048, 2048, 992),
    ("llama-1b up", 8192, 2048, 1600),
    ("llama-1b down", 2048, 8192, 1600),
    ("llama-7b q/o", 4096, 4096, 2016),
    ("llama-7b up", 11008, 4096, 2944),
    ("llama-7b down", 4096, 11008, 2944),
    ("llama-70b q/o", 8192, 8192, 4064),
    ("llama-70b up", 28672, 8192, 6336),
    ("llama-70b down", 8192, 28672, 6336),
)


def _kernel(kernels: dict[str, list[tuple[int, str]]], width: int, bits: bool) -> list[tuple[int, str]]:
    # gemv_stage<1 row, width, bits, from the middle vector, one phase>
    wanted = f"gemv_stageILi1ELi{width}ELb{int(bits)}ELNS_6SourceE1ELb0"
    return next(code for name, code in kernels.items() if wanted in name)


def code_of(architecture: int, bits: bool, folder: Path) -> Code:
    """Read the machine code of the one-row kernels."""
    kernels = disassemble(SOURCE, architecture, folder, KERNELS)
    # Only sm_90 code marks where its straight path begins; it is taken for all.
    marked = kernels if architecture == 90 else disassemble(SOURCE, 90, folder, KERNELS)
    per_tile: dict[int, tuple[float, float]] = {}
    for width in (1, 2):
        code = _kernel(kernels, width, bits)
        loop = max((loop for loop in loops(code) if loop.products), key=lambda loop: loop.weights)
        per_tile[width] = (loop.instructions / width, loop.products / width)
    return Code(per_tile, path_to_store(_kernel(marked, 1, bits)))


def model_rows(name_of_device: str, gpu: Gpu, code: Code) -> list[dict[str, Any]]:
    """Linear layers of whole models at 1 bit a weight, projections that share an input in one pass; nothing else."""
    rows = []
    for name, layers, hidden, query, key, wide in MODELS:
        shapes = [[(query, hidden), (key, hidden), (key, hidden)], [(hidden, query)]]
        shapes += [[(wide, hidden), (wide, hidden)], [(hidden, wide)]]
        total = 0.0
        for group in shapes:
            # A group's halves run together: as one matrix with the rows of all.
            ranks = [rank_for_rate(out, into, 1.0) for out, into in group]
            total += half_us(gpu, code, rows=sum(ranks), columns=group[0][1], share=BANDWIDTH_SHARE)
            total += half_us(gpu, code, rows=sum(out for out, _ in group), columns=max(ranks), share=BANDWIDTH_SHARE)
        us = layers * total
        rows.append(
            {"device": name_of_device, "model": name, "target_bpw": 1.0, "linears_us": round(us), "kind": "forecast"}
        )
    return rows


def measured(folder: Path) -> dict[str, float]:
    """The newest measured one-row times of layers, by name."""
    path = folder / "gpu_kernels.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {row["layer"]: row["us"] for row in rows if row["rows"] == 1 and row["way"] == "exact"}


@click.command()
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/gpu_forecast.json.")
@figures_option
def main(append: bool, folder: Path) -> None:
    """Print predicted times of layers and models, the H200's beside its measured ones."""
    known, rows = measured(folder), []
    codes: dict[tuple[int, bool], Code] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for device, gpu in DEVICES:
            key = (gpu.architecture, gpu.bits)
            if key not in codes:
                codes[key] = code_of(*key, Path(scratch))
            code = codes[key]
            click.echo(f"{device}: {code}")
            for name, out, into, rank in LAYERS:
                row = {"device": device, "layer": name, "kind": "forecast"}
                row["predicted_us"] = round(
                    layer_us(gpu, code, out=out, into=into, rank=rank, share=BANDWIDTH_SHARE), 2
                )
                if device == "h200" and name in known:
                    row["measured_us"] = known[name]
                    row["predicted_over_measured"] = round(row["predicted_us"] / known[name], 2)
                click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
                rows.append(row)
            for row in model_rows(device, gpu, code):
                click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
                rows.append(row)
    if append:
        append_rows("gpu_forecast", rows, 1, folder)


if __name__ == "__main__":
    main()
