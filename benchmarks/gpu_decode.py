# SPDX-License-Identifier: Apache-2.0
"""Decoding on a GPU: random bits of known shapes against the same shapes in bfloat16, everything in CUDA graphs.

    python -m benchmarks.gpu_decode --models qwen3-0.6b,llama-3.2-1b --batches 1,4,16 [--append]

Greedy decoding of a random prompt: tokens a second of the decode phase (all sequences together), time to the first
token with the prompt coming from the host, most memory that PyTorch held, energy a token from NVML's counter over at
least a second of decoding. Speed does not depend on the weights' values. The 70B shape has no bfloat16 row: its 138 GB
do not fit one GPU beside a cache.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.dense_decoder import dense_decoder
from benchmarks.figures import append_rows, figures_option, listed
from benchmarks.random_decoder import SHAPES, random_decoder
from nanoquant_edge.models.rates import layer_bits, rank_for_rate
from nanoquant_edge.runtimes.torch import DecoderModel, TorchBackend

FIRST_REPETITIONS = 5
#: the energy counter is updated some ten times a second, so a row decodes at least this long
DECODE_SECONDS = 1.0


class Energy:
    """NVML's total energy counter of the current GPU, in joules; None where it cannot be read."""

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            self._read: Any = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        except Exception as error:  # no package, no driver, no permission: pynvml has a class for each
            click.echo(f"no energy readings: {error}", err=True)
            self._read = None

    def joules(self) -> float | None:
        """Joules since the driver was loaded."""
        return None if self._read is None else self._read()


def true_bpw(name: str, bpw: float) -> float:
    """Stored bits per weight of all compressed layers at the ranks of a target rate."""
    shapes = SHAPES[name].config.linear_shapes().values()
    bits = sum(layer_bits(m, n, rank_for_rate(m, n, bpw)) for m, n in shapes)
    return bits / sum(m * n for m, n in shapes)


def build(name: str, bpw: float | None, layers: int | None, host_embedding: bool = False) -> DecoderModel:
    """A model with random bits at that rate, or in bfloat16."""
    shape = SHAPES[name]
    if layers is not None:
        shape = replace(shape, config=replace(shape.config, num_layers=layers))
    if bpw is None:
        return dense_decoder(shape.config, head_norms=shape.head_norms)
    return random_decoder(shape, lambda m, n: rank_for_rate(m, n, bpw), host_embedding=host_embedding)


def measure(backend: TorchBackend, batch: int, prompt: int, new: int, energy: Energy) -> dict[str, Any]:
    """One row's figures."""
    ids = np.random.default_rng(0).integers(0, backend.vocab_size, (batch, prompt))
    first, decode = [], []
    for repetition in range(FIRST_REPETITIONS + 2):  # two more: plain, and with the capture of the prompt's graph
        torch.cuda.synchronize()
        begin = time.perf_counter()
        backend.start(ids)
        if repetition >= 2:
            first.append(time.perf_counter() - begin)
    backend.extend(min(new, 16))  # captures the step's graph
    before = energy.joules()
    while len(decode) < 2 or sum(decode) < DECODE_SECONDS:
        # Decoding only: the prompt stays, and the same places of the cache are written again.
        backend.rewind(prompt)
        begin = time.perf_counter()
        backend.extend(new)  # returns numpy, so the work is done
        decode.append(time.perf_counter() - begin)
    after = energy.joules()
    middle = statistics.median(decode)
    return {
        "batch": batch,
        "prompt": prompt,
        "new": new,
        "repetitions": len(decode),
        "tps": round(batch * new / middle, 1),
        "tps_low": round(batch * new / max(decode), 1),
        "step_us": round(1e6 * middle / new, 1),
        "ttft_ms": round(1e3 * statistics.median(first), 2),
        "mem_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        "j_per_token": None
        if before is None or after is None
        else round((after - before) / (len(decode) * batch * new), 5),
    }


@click.command()
@click.option("--models", default=",".join(SHAPES), callback=listed(str), show_default=True)
@click.option("--batches", default="1,4,16", callback=listed(int), show_default=True)
@click.option("--new", default="128,1024", callback=listed(int), show_default=True, help="New tokens.")
@click.option("--prompt", default=128, show_default=True)
@click.option("--rates", default="1.0", callback=listed(float), show_default=True, help="Bits per weight.")
@click.option("--bf16/--no-bf16", default=True, show_default=True, help="Measure the dense model too.")
@click.option("--host-embedding", is_flag=True, help="Keep the embedding of compressed models in host memory.")
@click.option("--layers", type=int, help="Fewer blocks, for a trial; such rows are not appended.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@figures_option
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    new: tuple[int, ...],
    prompt: int,
    rates: tuple[float, ...],
    bf16: bool,
    host_embedding: bool,
    layers: int | None,
    append: bool,
    folder: Path,
) -> None:
    """Print one row a model, rate, batch and length."""
    energy = Energy()
    for name in models:
        dense = [None] if bf16 and name != "llama-2-70b" else []
        for bpw in (*rates, *dense):
            model = build(name, bpw, layers, host_embedding)
            rows = []
            for batch in batches:
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                context = prompt + max(new)
                backend = TorchBackend(model, max_context=context, start_capacity=context)
                for count in new:
                    row = {
                        "model": name,
                        "weights": "bf16" if bpw is None else "nanoquant",
                        "target_bpw": bpw,
                        "true_bpw": None if bpw is None else round(true_bpw(name, bpw), 4),
                        "host_embedding": host_embedding and bpw is not None,
                        **measure(backend, batch, prompt, count, energy),
                    }
                    click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
                    rows.append(row)
                del backend
            del model
            if append and layers is None:
                append_rows("gpu_decode", rows, FIRST_REPETITIONS, folder)


if __name__ == "__main__":
    main()
