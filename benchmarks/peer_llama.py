# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's side of `benchmarks.cpu_peers` and `benchmarks.peer_quality`.

Runs in an environment of its own, with llama-cpp-python and numpy alone.

    python peer_llama.py measure MODEL.gguf THREADS PROMPT NEW REPETITIONS
    python peer_llama.py perplexity MODEL.gguf THREADS WINDOW IDS.npy
    python peer_llama.py quantize SOURCE.gguf TARGET.gguf KIND [IMPORTANCES.npz [THREADS]]

Quantized models are made from the 4-bit file that the baseline is, which llama.cpp calls requantizing. Importances are
mean squares of each tensor's inputs, by the tensor's name, as llama.cpp's own tool collects them.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

__all__ = ["main"]

#: Positions whose logits are looked at together.
_ROWS = 128


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
    llama = _open(model, threads, -(-(prompt + new + 1) // 512) * 512)
    rng, firsts, rates, times = np.random.default_rng(0), [], [], []
    for number in range(repetitions + 1):
        llama.reset()
        ids = [int(token) for token in rng.integers(0, llama.n_vocab(), prompt)]
        begin = time.perf_counter()
        llama.eval(ids)
        token = _best(llama)
        first, worked = time.perf_counter(), time.process_time()
        for _ in range(new):
            llama.eval([token])
            token = _best(llama)
        if number:  # the first warms up
            times.append((time.process_time() - worked) / new)
            firsts.append(first - begin)
            rates.append(new / (time.perf_counter() - first))
    return {
        "prefill_tps": prompt / statistics.median(firsts),
        "ttft_ms": statistics.median(firsts) * 1e3,
        "decode_tps": statistics.median(rates),
        "decode_cpu_ms": statistics.median(times) * 1e3,
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
        found = np.zeros(window - 1)
        for start in range(0, window - 1, _ROWS):  # a large vocabulary's logits are gigabytes in float64
            part = slice(start, min(start + _ROWS, window - 1))
            logits = llama.scores[part].astype(np.float64)
            top = logits.max(-1, keepdims=True)
            chosen = np.take_along_axis(logits, ids[1:][part, None], -1)[:, 0]
            found[part] = np.log(np.exp(logits - top).sum(-1)) + top[:, 0] - chosen
        losses.append(found.mean())
    return {"ppl": float(np.exp(np.mean(losses)))}


def quantize(source: str, target: str, kind: str, importances: str = "", threads: str = "1") -> dict[str, float]:
    """Write a model of another kind (Q4_0, IQ2_XXS, ...: llama.h's LLAMA_FTYPE_MOSTLY_*)."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.allow_requantize = True
    parameters.nthread = int(threads)
    if importances:
        kept = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(importances).items()}
        entry, number = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        entries = [entry(name.encode(), array.ctypes.data_as(number), array.size) for name, array in kept.items()]
        table = (entry * (len(entries) + 1))(*entries, entry(None, None, 0))  # the last one has no name
        parameters.imatrix = ctypes.cast(table, ctypes.POINTER(entry))
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
        found = quantize(model, *rest)
    print(json.dumps({**found, "version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
