# SPDX-License-Identifier: Apache-2.0
"""Decode speed and memory of a bundle against PyTorch float32, and start-up times; each in a process of its own.

    python -m benchmarks.decode BUNDLE --checkpoint CHECKPOINT [--append]

PyTorch runs the dense model of the same checkpoint, which has the dense model's shapes and so its speed; its time to
the first token includes rebuilding the dense weights and is not comparable. Processes alternate, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows

PROMPT = "The history of the city begins with a small settlement on the river."

TORCH = """
import json, resource, sys, time
started = time.perf_counter()
import torch
from transformers import AutoTokenizer
from nanoquant_edge.validation.dense import dense_model
folder, prompt, new = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, tokenizer = dense_model(folder), AutoTokenizer.from_pretrained(folder)
ids, past, times = torch.tensor([tokenizer(prompt)["input_ids"]]), None, []
with torch.inference_mode():
    for _ in range(new):
        result = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, ids = result.past_key_values, result.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
first, tps = times[0] - started, (new - 1) / (times[-1] - times[0])
print(json.dumps({"decode_tps": tps, "first_token_s": first, "peak_mb": peak}))
"""

BUNDLE = """
import json, sys, time
started = time.perf_counter()
from nanoquant_edge.runtimes import Generator
with Generator.from_bundle(sys.argv[1]) as generator:
    run = generator.stream(sys.argv[2], max_new_tokens=int(sys.argv[3]))
    next(run)
    first = time.perf_counter() - started
    for _ in run:
        pass
result = run.result
print(json.dumps({"decode_tps": result.decode_tps, "first_token_s": first, "peak_mb": result.peak_memory_mb}))
"""


def measure(script: str, folder: Path, new_tokens: int) -> dict[str, float]:
    """Run one of the scripts in a fresh process."""
    command = [sys.executable, "-c", script, str(folder), PROMPT, str(new_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def help_seconds() -> float:
    """Wall time of `nq-edge --help`."""
    started = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name("nq-edge")), "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--repetitions", default=5, show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/decode.json.")
def main(bundle: Path, checkpoint: Path, repetitions: int, new_tokens: int, append: bool) -> None:
    """Print one row for the bundle, one for PyTorch, one for --help; medians, with least and most."""
    measure(BUNDLE, bundle, 4)  # file cache, and the hashes of a first load
    runs: dict[str, list[dict[str, float]]] = {"nanoquant bundle": [], "PyTorch float32": []}
    for _ in range(repetitions):
        runs["nanoquant bundle"].append(measure(BUNDLE, bundle, new_tokens))
        runs["PyTorch float32"].append(measure(TORCH, checkpoint, new_tokens))
    rows: list[dict[str, Any]] = []
    for name, figures in runs.items():
        row: dict[str, Any] = {"name": name, "new_tokens": new_tokens}
        for key in figures[0]:
            values = [figure[key] for figure in figures]
            row[key] = round(statistics.median(values), 2)
            row[f"{key}_range"] = [round(min(values), 2), round(max(values), 2)]
        rows.append(row)
    times = [help_seconds() for _ in range(max(5, repetitions))]
    rows.append({"name": "nq-edge --help", "seconds": round(statistics.median(times), 3)})
    for row in rows:
        click.echo(json.dumps(row))
    if append:
        append_rows("decode", rows, repetitions)


if __name__ == "__main__":
    main()
