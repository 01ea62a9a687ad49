# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels layer by layer: time, bandwidth and ratios to cuBLAS and to the official kernels, in one run.

    python -m benchmarks.gpu_kernels --rows 1,4 --layers llama-70b [--ways exact,int8] [--append]

Copies of a layer that together hold at least 150 MB of packed words take turns, so that the weights come from memory,
not from a cache; the calls form one CUDA graph, whose replays are timed. Each call reads the same input, as the layers
of a model do in turn. cuBLAS multiplies dense bfloat16 weights of the same size in the same way. Copy bandwidth counts
bytes read and written.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import append_rows, figures_option, listed
from benchmarks.gpu_timing import REPETITIONS, copy_gbs, graph_us
from benchmarks.random_layer import random_layer
from nanoquant_edge.models.rates import rank_for_rate
from nanoquant_edge.runtimes.cuda.binding import Algorithm, Precision

ROTATED_BYTES = 150e6


@dataclass(frozen=True)
class Shape:
    """A layer: out x in, its rank, and the official kernels' times for one row (GEMV) and ratios to bf16 (GEMM).

    The official figures were measured on an H200 with their best configuration of 18 (bf16, 1.0 bits per weight,
    weights rotated, CUDA graph).
    """

    name: str
    out: int
    into: int
    rank: int
    official_us: float | None = None
    official_over_bf16: dict[int, float] | None = None


def _official(name: str, out: int, into: int, rank: int, us: float, *ratios: float | None) -> Shape:
    known = {rows: ratio for rows, ratio in zip((16, 128, 2048), ratios, strict=True) if ratio is not None}
    return Shape(name, out, into, rank, us, known)


def _at_one_bit(name: str, out: int, into: int) -> Shape:
    return Shape(name, out, into, rank_for_rate(out, into, 1.0))


SHAPES = (
    _official("llama-1b q/o", 2048, 2048, 992, 3.80, 0.26, 0.12, 0.44),
    _official("llama-1b up", 8192, 2048, 1600, 6.42, 0.49, 0.25, 0.44),
    _official("llama-1b down", 2048, 8192, 1600, 8.36, 0.48, 0.32, 0.44),
    _official("llama-7b q/o", 4096, 4096, 2016, 6.70, 0.53, 0.32, 0.46),
    _official("llama-7b up", 11008, 4096, 2944, 10.22, 1.06, None, None),
    _official("llama-7b down", 4096, 11008, 2944, 11.11, 1.03, 0.53, 0.50),
    _official("llama-70b q/o", 8192, 8192, 4064, 12.62, 1.52, 0.57, 0.53),
    _official("llama-70b up", 28672, 8192, 6336, 31.35, 2.37, 0.80, 0.58),
    _official("llama-70b down", 8192, 28672, 6336, 33.57, 2.69, 0.77, 0.56),
    _at_one_bit("smollm2 q/o", 576, 576),
    _at_one_bit("smollm2 up", 1536, 576),
    _at_one_bit("smollm2 down", 576, 1536),
    _at_one_bit("gemma-3-1b q", 1024, 1152),
    _at_one_bit("gemma-3-1b up", 6912, 1152),
    _at_one_bit("gemma-3-1b down", 1152, 6912),
    _at_one_bit("qwen3-0.6b q", 2048, 1024),
    _at_one_bit("qwen3-0.6b up", 3072, 1024),
    _at_one_bit("qwen3-0.6b down", 1024, 3072),
)

#: algorithm and precision behind a name of --ways
WAYS = {
    "exact": (Algorithm.AUTO, Precision.EXACT),
    "int8": (Algorithm.AUTO, Precision.INT8),
    "bits": (Algorithm.GEMV_BITS, Precision.EXACT),
    "bytes": (Algorithm.GEMV_BYTES, Precision.EXACT),
    "mma": (Algorithm.GEMM_MMA, Precision.EXACT),
    "wgmma": (Algorithm.GEMM_WGMMA, Precision.EXACT),
}


def copies_of(size: float) -> int:
    """How many copies of `size` bytes take turns."""
    return min(128, max(3, math.ceil(ROTATED_BYTES / size)))


def cublas_us(shape: Shape, rows: int) -> float:
    """The dense bfloat16 product of the same size."""
    x = torch.randn(rows, shape.into, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, shape.out, device="cuda", dtype=torch.bfloat16)
    count = copies_of(2 * shape.out * shape.into)
    weights = torch.randn(count, shape.out, shape.into, device="cuda", dtype=torch.bfloat16)
    return graph_us([lambda weight=weight: torch.mm(x, weight.T, out=out) for weight in weights])[0]  # type: ignore[misc]


def kernel_us(shape: Shape, rows: int, way: str) -> tuple[float, float, float]:
    """This project's kernels."""
    algorithm, precision = WAYS[way]
    generator = torch.Generator("cuda").manual_seed(0)
    count = copies_of((shape.out + shape.into) * shape.rank / 8)
    layers = [
        random_layer(
            shape.out, shape.into, rank=shape.rank, generator=generator, algorithm=algorithm, precision=precision
        )
        for _ in range(count)
    ]
    x = torch.randn(rows, shape.into, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, layers[0].width, device="cuda", dtype=torch.bfloat16)
    return graph_us([lambda layer=layer: layer(x, out) for layer in layers])  # type: ignore[misc]


def row_of(shape: Shape, rows: int, way: str, copy: float, dense: float) -> dict[str, Any]:
    """One row of the figure file."""
    us, low, high = kernel_us(shape, rows, way)
    gbs = (shape.out + shape.into) * shape.rank / 8 / us / 1e3
    row = {
        "layer": shape.name,
        "out": shape.out,
        "in": shape.into,
        "rank": shape.rank,
        "rows": rows,
        "dtype": "bfloat16",
        "way": way,
        "us": round(us, 2),
        "us_low": round(low, 2),
        "us_high": round(high, 2),
        "gbs": round(gbs),
        "copy_gbs": round(copy),
        "of_copy": round(gbs / copy, 3),
        "bf16_us": round(dense, 2),
        "over_bf16": round(dense / us, 3),
    }
    if rows == 1 and shape.official_us is not None:
        row["over_official"] = round(shape.official_us / us, 3)
    elif shape.official_over_bf16 is not None and rows in shape.official_over_bf16:
        row["over_official"] = round(dense / us / shape.official_over_bf16[rows], 3)
    return row


@click.command()
@click.option("--rows", default="1,4,16,64,128,512,2048", callback=listed(int), show_default=True)
@click.option("--layers", default="", help="Only layers whose name begins so, for example llama.")
@click.option("--ways", default="exact", callback=listed(str), show_default=True, help=", ".join(WAYS))
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@figures_option
def main(rows: tuple[int, ...], layers: str, ways: tuple[str, ...], append: bool, folder: Path) -> None:
    """Print one line a layer, row count and way, and geometric means over the layers with official figures."""
    copy = copy_gbs()
    click.echo(f"copy {copy:.0f} GB/s")
    made = []
    for count in rows:
        batch = []
        for shape in (shape for shape in SHAPES if shape.name.startswith(layers)):
            dense = cublas_us(shape, count)
            for way in ways:
                batch.append(row_of(shape, count, way, copy, dense))
                keys = ("rows", "layer", "way", "us", "gbs", "of_copy", "over_bf16", "over_official")
                click.echo("  ".join(f"{key}={batch[-1][key]}" for key in keys if key in batch[-1]))
        for way, key in itertools.product(ways, ("over_official", "over_bf16")):
            ratios = [
                row[key] for row in batch if row["way"] == way and key in row and row["layer"].startswith("llama")
            ]
            if ratios:
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                click.echo(f"rows={count} {way}: geometric mean of {key} over {len(ratios)} layers: {mean:.2f}")
        made += batch
    if append:
        append_rows("gpu_kernels", made, REPETITIONS, folder)


if __name__ == "__main__":
    main()
