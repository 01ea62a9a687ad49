# SPDX-License-Identifier: Apache-2.0
"""Prefill, decode, loading and memory of a bundle, in this process: use a fresh one for each bundle."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NqEdgeError
from ..formats.tokenizer import load_tokenizer
from ..runtimes.backend import Backend, WritingBackend
from ..runtimes.options import OpenOptions
from ..runtimes.sampling import SamplingConfig
from ..runtimes.target import Target
from ..system.memory import peak_memory_mb, resident_memory_mb

__all__ = ["BenchOptions", "Timing", "measure_bundle", "summary"]


#: Texts of a batch, and the tokens of each one's prompt.
_MOST_TEXTS, _BATCH_PROMPT = 256, 8


@dataclass(frozen=True, kw_only=True)
class BenchOptions(OpenOptions):
    """What is measured, and how the bundle is opened for it.

    Attributes:
        lengths: prompt lengths, tokens.
        new_tokens: tokens decoded after each prompt.
        repetitions: of every length.
        batches: how many texts at once are decoded, besides; none by default.
        power: read the machine's energy counters too.

    Raises:
        NqEdgeError: NQ-OPTION for counts below 1, and as `OpenOptions`.
    """

    lengths: tuple[int, ...] = (32, 256)
    new_tokens: int = 64
    repetitions: int = 5
    batches: tuple[int, ...] = ()
    power: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or min(*self.lengths, *self.batches, self.new_tokens, self.repetitions, 1 << 30) < 1:
            raise NqEdgeError(
                "NQ-OPTION", "lengths, batches, new tokens and repetitions must be whole numbers above 0."
            )
        if max(self.batches, default=0) > _MOST_TEXTS:
            raise NqEdgeError("NQ-OPTION", f"a batch has at most {_MOST_TEXTS} texts.")


@dataclass(frozen=True)
class Timing:
    """One prompt length; every figure is [median, least, most] over the repetitions.

    Attributes:
        prompt: tokens.
        prefill_tps: prompt tokens a second.
        ttft_ms: from token ids to the first new token.
        decode_tps: new tokens a second, the choice of the token included.
        decode_cpu_ms: processor time of a new token, all threads together, also those that wait without sleeping.
    """

    prompt: int
    prefill_tps: tuple[float, float, float]
    ttft_ms: tuple[float, float, float]
    decode_tps: tuple[float, float, float]
    decode_cpu_ms: tuple[float, float, float]


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def measure_bundle(folder: str | Path, options: BenchOptions, target: Target | None = None) -> dict[str, Any]:
    """Load a bundle or a checkpoint and time it.

    Args:
        folder: the bundle or checkpoint.
        options: what is measured.
        target: what `Target.of` made of the folder with these options, where it was asked for already.

    Returns:
        JSON-ready: `bundle`, `file_mb`, `load_s` (manifest, tokenizer and session; hashes not), `timings` (a `Timing`
        for each length), `batches` (`texts`, and `decode_tps` of all together), `memory_mb` (`loaded`, `steady` after
        the runs, `peak`), `threads`, `kernel`, `backend`, `place` (where it ran), `gpu_mb` on a GPU, and `energy` when
        asked for.

    Raises:
        NqEdgeError: NQ-OPTION when a prompt and its new tokens do not fit the context, and what opening raises.
    """
    begin = time.perf_counter()
    target = target or Target.of(folder, options, verify=False)
    limit = target.context
    if max(options.lengths) + options.new_tokens > limit:
        raise NqEdgeError(
            "NQ-OPTION",
            f"{max(options.lengths)} + {options.new_tokens} tokens do not fit the model's context of {limit}.",
            "Pass shorter --lengths.",
        )
    load_tokenizer(target.folder)
    backend = target.open(options)
    loaded = time.perf_counter() - begin
    try:
        memory = {"loaded": resident_memory_mb()}
        rng = np.random.default_rng(0)
        _once(backend, rng, min(options.lengths), 2)  # the first run pays for memory that later ones find
        tokens = options.repetitions * sum(length + options.new_tokens for length in options.lengths)
        with _energy(options.power) as run:
            timings = [_timing(backend, rng, length, options) for length in options.lengths]
        batches = [_batch(backend, rng, texts, options) for texts in options.batches]
        memory |= {"steady": resident_memory_mb(), "peak": peak_memory_mb()}
        kernel = backend.kernel
        device_bytes = getattr(backend, "device_bytes", None)
    finally:
        backend.close()
    report: dict[str, Any] = {
        "bundle": str(folder),
        "backend": target.name,
        "place": target.device,
        "kernel": kernel,
        "threads": options.running_threads,
        "file_mb": target.file_bytes / 1e6,
        "load_s": loaded,
        "timings": [asdict(timing) for timing in timings],
        "batches": batches,
        "memory_mb": memory,
    }
    if device_bytes is not None:
        report["gpu_mb"] = device_bytes / 1e6
    if options.power:
        report["energy"] = run.energy.to_dict(tokens)
    return report


def _energy(wanted: bool) -> Any:
    """A context that measures energy, or one that does nothing."""
    if not wanted:
        return contextlib.nullcontext()
    from ..devices.power import measure_power

    return measure_power()


def _timing(backend: Backend, rng: np.random.Generator, length: int, options: BenchOptions) -> Timing:
    first, decode, worked = zip(
        *(_once(backend, rng, length, options.new_tokens) for _ in range(options.repetitions)), strict=True
    )
    return Timing(
        length,
        summary([length / seconds for seconds in first]),
        summary([seconds * 1e3 for seconds in first]),
        summary([options.new_tokens / seconds for seconds in decode]),
        summary([seconds * 1e3 / options.new_tokens for seconds in worked]),
    )


def _batch(backend: Backend, rng: np.random.Generator, texts: int, options: BenchOptions) -> dict[str, Any]:
    """Tokens a second of so many texts that are decoded together, after a short prompt each."""
    rates = []
    for _ in range(options.repetitions):
        backend.reset()
        logits = backend.forward(rng.integers(0, backend.vocab_size, (texts, _BATCH_PROMPT)))
        begin = time.perf_counter()
        for _ in range(options.new_tokens):
            logits = backend.forward(logits[:, -1].argmax(-1)[:, None].astype(np.int64))
        rates.append(texts * options.new_tokens / (time.perf_counter() - begin))
    backend.reset()
    return {"texts": texts, "decode_tps": summary(rates)}


def _once(backend: Backend, rng: np.random.Generator, length: int, new_tokens: int) -> tuple[float, float, float]:
    """Seconds to the first token of a random prompt, of the new tokens after it, and of the processors for these."""
    ids = rng.integers(0, backend.vocab_size, (1, length))
    backend.reset()
    begin = time.perf_counter()
    if isinstance(backend, WritingBackend):  # what `generate` does with it
        written = backend.write(ids[0], new_tokens + 1, SamplingConfig())
        next(written)
        first, worked = time.perf_counter(), time.process_time()
        for _ in written:
            pass
        return first - begin, time.perf_counter() - first, time.process_time() - worked
    token = int(np.argmax(backend.forward(ids)[0, -1]))
    first, worked = time.perf_counter(), time.process_time()
    for _ in range(new_tokens):
        token = int(np.argmax(backend.forward(np.array([[token]]))[0, -1]))
    return first - begin, time.perf_counter() - first, time.process_time() - worked
