# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's side of `benchmarks.cpu_peers`: runs in an environment of its own, with llama-cpp-python and numpy alone.

    python peer_llama.py measure MODEL.gguf THREADS PROMPT NEW REPETITIONS
    python peer_llama.py perplexity MODEL.gguf THREADS WINDOW IDS.npy
    python peer_llama.py quantize SOURCE.gguf TARGET.gguf KIND

Quantized models are made from the 4-bit file that the baseline is, which llama.cpp calls requantizing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

__all__ = ["main"]


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def _open(model: str, threads: int, context: int, logits_all: bool = False) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        model,
        n_ctx=context,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=logits_all,
        verbose=False,
    )


def measure(model: str, threads: int, prompt: int, new: int, repetitions: int) -> dict[str, float]:
    """Medians over the repetitions, and resident memory after the last one."""
    llama = _open(model, threads, 512)
    rng, firsts, rates = np.random.default_rng(0), [], []
    for number in range(repetitions + 1):
        llama.reset()
        ids = [int(token) for token in rng.integers(0, llama.n_vocab(), prompt)]
        begin = time.perf_counter()
        llama.eval(ids)
        token = _best(llama)
        first = time.perf_counter()
        for _ in range(new):
            llama.eval([token])
            token = _best(llama)
        if number:  # the first warms up
            firsts.append(first - begin)
            rates.append(new / (time.perf_counter() - first))
    return {
        "prefill_tps": prompt / statistics.median(firsts),
        "ttft_ms": statistics.median(firsts) * 1e3,
        "decode_tps": statistics.median(rates),
        "rss_mb": _resident_mb(),
    }


def _best(llama: llama_cpp.Llama) -> int:
    """The likeliest token after the last one, straight from llama.cpp's own logits."""
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), (llama.n_vocab(),))
    return int(logits.argmax())


def perplexity(model: str, threads: int, window: int, path: str) -> dict[str, float]:
    """exp of the mean of the windows' mean losses."""
    llama, losses = _open(model, threads, window, logits_all=True), []
    for ids in np.load(path).reshape(-1, window):
        llama.reset()
        llama.eval([int(token) for token in ids])
        logits = llama.scores[: window - 1].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, ids[1:, None], -1)[:, 0]
        losses.append(np.mean(np.log(np.exp(logits - top).sum(-1)) + top[:, 0] - chosen))
    return {"ppl": float(np.exp(np.mean(losses)))}


def quantize(source: str, target: str, kind: str) -> dict[str, float]:
    """Write a model of another kind (Q4_0, TQ1_0, ...)."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = {"Q4_0": 2, "Q4_1": 3, "Q2_K": 10, "TQ1_0": 36, "TQ2_0": 37}[kind]  # llama.h, enum llama_ftype
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        raise SystemExit(f"llama.cpp could not make {kind}")
    return {}


def main() -> None:
    """Print one JSON object."""
    verb, model, *rest = sys.argv[1:]
    if verb == "measure":
        found = measure(model, *(int(number) for number in rest))
    elif verb == "perplexity":
        found = perplexity(model, int(rest[0]), int(rest[1]), rest[2])
    else:
        found = quantize(model, rest[0], rest[1])
    print(json.dumps({**found, "version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
