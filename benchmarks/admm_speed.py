# SPDX-License-Identifier: Apache-2.0
"""Time of LB-ADMM on a layer of a given shape, by solver and power iterations, and the error that each ends with.

    python -m benchmarks.admm_speed --shape 576x576 --shape 1536x576 --bpw 1.0 --device cuda --append

The weight has a decaying spectrum and uneven rows and columns, as real ones do (problem S of docs/METHOD.md, section
5.5). Each setting runs once to make its CUDA graph, then `--repeats` times; the median counts.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import torch

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.compression.execution.precision import preferred_dtype
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.problem import KeptProblems
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.models.rates import rank_for_rate


def structured(m: int, n: int) -> torch.Tensor:
    """A weight (m, n) of singular values (1 + i / 40)^-0.8, rows and columns scaled by exp(0.3 N(0, 1)), rms 0.02."""
    generator = torch.Generator().manual_seed(0)
    k = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(size, k, generator=generator))[0] for size in (m, n))
    weight = (left * (1 + torch.arange(k) / 40) ** -0.8) @ right.T
    weight *= torch.exp(0.3 * torch.randn(m, 1, generator=generator))
    weight *= torch.exp(0.3 * torch.randn(1, n, generator=generator))
    return 0.02 * weight / weight.std()


def seconds(weight: torch.Tensor, rank: int, settings: AdmmSettings, repeats: int) -> tuple[float, float]:
    """Median time of a factorization, s, and its error."""
    (m, n), device = weight.shape, weight.device
    ones = {"inputs": torch.ones(n, device=device), "outputs": torch.ones(m, device=device)}
    problems = KeptProblems()
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        found = factorize(weight, rank, **ones, settings=settings, problems=problems)
        times.append(time.perf_counter() - start)  # the error is a number of the host's, so the device is done
    problems.close()
    return statistics.median(times[1:]), found.error


@click.command()
@click.option("--shape", "shapes", multiple=True, default=("576x576", "192x576", "1536x576"), show_default=True)
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--steps", default=400, show_default=True)
@click.option("--svid", "svids", type=int, multiple=True, default=(5, 1), show_default=True, help="Power iterations.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--append", is_flag=True, help="Add rows to docs/figures/admm_speed.json.")
@figures_option
def main(
    shapes: tuple[str, ...],
    bpw: float,
    steps: int,
    svids: tuple[int, ...],
    repeats: int,
    device: str,
    append: bool,
    folder: Path,
) -> None:
    """Print a row for each shape, solver and number of power iterations."""
    rows = []
    for shape in shapes:
        m, n = (int(part) for part in shape.split("x"))
        weight, rank = structured(m, n).to(device), rank_for_rate(m, n, bpw)
        for solver in ("cholesky", "products"):
            for svid in svids:
                settings = AdmmSettings(
                    steps=steps, svid_steps=svid, dtype=preferred_dtype(weight.device), solver=solver
                )
                taken, error = seconds(weight, rank, settings, repeats)
                row = {"shape": shape, "rank": rank, "solver": solver, "svid_steps": svid, "steps": steps}
                rows.append({**row, "seconds": round(taken, 4), "error": round(error, 5)})
                click.echo(json.dumps(rows[-1]))
    if append:
        append_rows("admm_speed", rows, repeats, folder)


if __name__ == "__main__":
    main()
