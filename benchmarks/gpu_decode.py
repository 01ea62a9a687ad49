# SPDX-License-Identifier: Apache-2.0
"""Decoding on a GPU: checkpoints of known shapes through the product's own backend, and dense bfloat16 beside them.

    python -m benchmarks.gpu_decode --models qwen3-0.6b,llama-3.2-1b --tables fp16,int8,int4 --batches 1,16 --append
    python -m benchmarks.gpu_decode --checkpoint FOLDER --append

Random signs, written to disk and opened as any checkpoint is; each model and table in a process of its own, so that
its host memory is its own. Greedy decoding of a random prompt: tokens a second of the decode phase (all sequences
together), time to the first token with the prompt coming from the host, device memory (weights, cache, work),
most host memory and seconds of loading, energy a token from NVML's counter where it can be read. Beside each step
stands its floor: bytes of weights, head and cache over the copy bandwidth that the same process measured.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.decoder_shapes import config_of, random_checkpoint, true_bpw
from benchmarks.figures import append_rows, figures_option, listed
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.system.memory import peak_memory_mb, resident_memory_mb

FIRST_REPETITIONS = 5
#: a row decodes at least this long
DECODE_SECONDS = 0.6


@dataclass(frozen=True)
class Plan:
    """What is measured of one model: (batch, prompt, new tokens) for each row."""

    cases: tuple[tuple[int, int, int], ...]


class Energy:
    """NVML's total energy counter of the first GPU, in joules; None where it cannot be read."""

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            self._read: Any = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        except Exception:  # no package, no driver, no permission: pynvml has a class for each
            self._read = None

    def joules(self) -> float | None:
        """Joules since the driver was loaded."""
        return None if self._read is None else self._read()


def measure(decoder: Any, ids: np.ndarray, new: int, energy: Energy) -> dict[str, Any]:
    """One row's figures of anything with `start`, `extend` and `rewind`."""
    batch, prompt = ids.shape
    first: list[float] = []
    for repetition in range(FIRST_REPETITIONS + 2):  # two more: plain, and with the capture of the prompt's graph
        begin = time.perf_counter()
        decoder.start(ids)
        if repetition >= 2:
            first.append(time.perf_counter() - begin)
    decoder.extend(min(new, 16))  # captures the step's graph
    before = energy.joules()
    decode: list[float] = []
    while len(decode) < 2 or sum(decode) < DECODE_SECONDS:
        # Decoding only: the prompt stays, and the same places of the cache are written again.
        decoder.rewind(prompt)
        begin = time.perf_counter()
        decoder.extend(new)
        decode.append(time.perf_counter() - begin)
    after = energy.joules()
    middle = statistics.median(decode)
    spent = None if before is None or after is None else (after - before) / (len(decode) * batch * new)
    return {
        "batch": batch,
        "prompt": prompt,
        "new": new,
        "repetitions": len(decode),
        "tps": round(batch * new / middle, 1),
        "tps_low": round(batch * new / max(decode), 1),
        "step_us": round(1e6 * middle / new, 1),
        "ttft_ms": round(1e3 * statistics.median(first), 3),
        "j_per_token": None if spent is None else round(spent, 5),
    }


def measure_cuda(folder: Path, plan: Plan, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the product's backend; in a process without PyTorch."""
    from nanoquant_edge.runtimes.cuda.backend import CudaBackend

    base = resident_memory_mb()
    begin = time.perf_counter()
    context = max(prompt + new for _, prompt, new in plan.cases)
    backend = CudaBackend.from_checkpoint(folder, max_context=context, **options)
    loading = time.perf_counter() - begin
    peak, energy = peak_memory_mb(), Energy()
    rows = []
    for batch, prompt, new in plan.cases:
        ids = np.random.default_rng(0).integers(0, backend.vocab_size, (batch, prompt))
        row = measure(backend, ids, new, energy)
        engine = backend.engine
        row |= {
            "gpu": engine.device.name,
            "mem_gb": round(backend.device_bytes / 1e9, 4),
            "weights_gb": round(engine.plan.weights / 1e9, 4),
            "cache_gb": round(engine.cache.bytes / 1e9, 4),
            "host_mb": round(peak, 1),
            "host_before_mb": round(base, 1),
            "load_s": round(loading, 3),
            "floor_us": round(floor_us(backend, batch, prompt + new // 2), 1),
        }
        rows.append(row)
    backend.close()
    return rows


def floor_us(backend: Any, batch: int, context: int) -> float:
    """Time to read all weights, the head and the cache once, at the device's copy bandwidth."""
    engine = backend.engine
    config, form = engine.config, engine.plan.form
    read = engine.plan.weights + batch * context * (form.page // form.page_tokens)
    if not config.tied:  # of an embedding of its own, rows are read
        read -= config.vocab_size * config.hidden_size * 2
    return 1e6 * read / copy_bandwidth(engine.device)


def copy_bandwidth(device: Any) -> float:
    """Bytes a second that a copy reads and writes, from a gigabyte copied on the device."""
    size = 512 << 20
    one, other = device.allocate(size, "a copy"), device.allocate(size, "a copy")
    begin, end = device.event(), device.event()
    seconds = []
    for _ in range(6):
        begin.record()
        device.copy(other.address, one.address, size)
        end.record()
        end.wait()
        seconds.append(end.since(begin))
    begin.free()
    end.free()
    one.free()
    other.free()
    return 2 * size / min(seconds)


def measure_dense(name: str, plan: Plan, layers: int | None) -> list[dict[str, Any]]:
    """Rows of the dense model in PyTorch."""
    import torch

    from benchmarks.dense_decoder import DenseDecoder

    rows, energy = [], Energy()
    for batch, prompt, new in plan.cases:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        decoder = DenseDecoder(config_of(name, layers), batch, prompt + new + 16)
        ids = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (batch, prompt))
        rows.append(measure(decoder, ids, new, energy))
        rows[-1]["mem_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 4)
        del decoder
    return rows


def in_process(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure in a process of its own; what fails there is told and gives no rows."""
    command = [sys.executable, "-m", "benchmarks.gpu_decode", "--inside", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        click.echo(f"failed: {arguments}\n{done.stderr[-2000:]}", err=True)
        return []
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def inside(text: str) -> None:
    """The other side of `in_process`."""
    given = json.loads(text)
    plan = Plan(tuple(tuple(case) for case in given["cases"]))
    if given["backend"] == "cuda":
        rows = measure_cuda(Path(given["folder"]), plan, given["options"])
    else:
        rows = measure_dense(given["model"], plan, given["layers"])
    click.echo(json.dumps(rows))


@click.command()
@click.option("--models", default="qwen3-0.6b,llama-3.2-1b,qwen3-8b,llama-2-70b", callback=listed(str))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Measure this checkpoint instead of shapes.")
@click.option("--tables", default="fp16", callback=listed(str), show_default=True, help="fp16, int8, int4.")
@click.option("--batches", default="1,4,16", callback=listed(int), show_default=True)
@click.option("--prompts", default="128", callback=listed(int), show_default=True, help="Prompt lengths at batch 1.")
@click.option("--new", default=128, show_default=True, help="New tokens.")
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--dtype", default="float16", show_default=True, help="Of activations.")
@click.option("--cache-bits", default=16, show_default=True)
@click.option("--bf16/--no-bf16", default=True, show_default=True, help="Measure the dense model too.")
@click.option("--layers", type=int, help="Fewer blocks, for a trial; such rows are not appended.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write the checkpoints here and keep them.")
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@click.option("--inside", "inner", hidden=True)
@figures_option
def main(**given: Any) -> None:
    """Print one row a model, table, batch and prompt."""
    if given["inner"]:
        inside(given["inner"])
        return
    cases = tuple((batch, 128, given["new"]) for batch in given["batches"])
    cases += tuple((1, prompt, given["new"]) for prompt in given["prompts"] if prompt != 128)
    shared = {"layers": given["layers"], "cases": cases}
    options = {"dtype": given["dtype"], "cache_bits": given["cache_bits"]}
    with tempfile.TemporaryDirectory() as scratch:
        for name, about, arguments in _runs(given, Path(given["keep"] or scratch)):
            said = {"backend": arguments["backend"], "model": name, **about}
            rows = [{**said, **row} for row in in_process({**shared, "model": name, "options": options, **arguments})]
            for row in rows:
                click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
            if given["append"] and given["layers"] is None and rows:
                append_rows("gpu_decode", rows, FIRST_REPETITIONS, given["folder"])


def _runs(given: dict[str, Any], scratch: Path) -> Any:
    """(model, what its rows say of it, arguments) for each process; a checkpoint is written before it is measured."""
    about = {"dtype": given["dtype"], "cache_bits": given["cache_bits"]}
    if given["checkpoint"] is not None:
        folder = given["checkpoint"]
        found = Checkpoint(folder)
        said = {
            "weights": "nanoquant",
            "target_bpw": found.settings.target_bpw,
            "true_bpw": round(found.settings.true_bpw, 4),
        }
        for table in given["tables"]:
            held = {} if table == "stored" else {"table": table}
            arguments = {"backend": "cuda", "folder": str(folder), "options": {**about, **held}}
            yield found.name, {**said, "table": table, **about}, arguments
        return
    for name in given["models"]:
        bpw = given["bpw"]
        for table in given["tables"]:
            folder = random_checkpoint(name, scratch / f"{name}-{table}", bpw=bpw, table=table, layers=given["layers"])
            said = {"weights": "nanoquant", "target_bpw": bpw, "true_bpw": round(true_bpw(name, bpw), 4)}
            yield name, {**said, "table": table, **about}, {"backend": "cuda", "folder": str(folder)}
            if given["keep"] is None:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        if given["bf16"] and name != "llama-2-70b":  # 138 GB do not fit one GPU beside a cache
            dense = {"weights": "bf16", "target_bpw": None, "true_bpw": None, "table": "bf16", "dtype": "bfloat16"}
            yield name, {**dense, "cache_bits": 16}, {"backend": "torch"}


if __name__ == "__main__":
    main()
