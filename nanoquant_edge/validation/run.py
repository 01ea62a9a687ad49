# SPDX-License-Identifier: Apache-2.0
"""`validate`: open both sides, walk the ladder, report. PyTorch is imported only to compute a reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from ..formats.checkpoint import Checkpoint
from ..runtimes import Backend, load_tokenizer, open_backend, remarks
from ..system.extras import install_command
from .expected import Reference
from .ladder import INNER, LIMITS, rung_greedy, rung_inner, rungs_logits
from .recorded import RecordedReference, Recorder
from .report import PASS, SKIPPED, Report, Rung
from .text import cut_windows, read_text

if TYPE_CHECKING:
    from .reference import TorchReference

__all__ = ["validate"]

Progress = Callable[[float, str], None]
#: Names of inner values to return -> an open backend.
Opener = Callable[[tuple[str, ...]], Backend]

#: Prompts of rung 5 when none are given: the first tokens of this many windows.
_PROMPTS = 4
_PROMPT_TOKENS = 16
_NEW_TOKENS = 32
_SEED = 0


def _quiet(_fraction: float, _text: str) -> None:
    pass


def validate(
    bundle: str | Path | Bundle,
    against: str | Path | Checkpoint | None = None,
    *,
    record: bool = False,
    text: str | Path | None = None,
    windows: int = 16,
    window_length: int = 256,
    prompts: Sequence[str] = (),
    new_tokens: int = _NEW_TOKENS,
    threads: int | None = None,
    allow_portable: bool = False,
    provider: str = "cpu",
    trust_bundle_code: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle with PyTorch, or with what PyTorch recorded in it.

    Args:
        bundle: what an export wrote.
        against: the checkpoint it came from; None uses the bundle's recorded reference and needs no PyTorch.
        record: store PyTorch's side in the bundle, and the outcome in its manifest.
        text: UTF-8 file to compare on; None lets the reference model write the windows itself, with a fixed seed.
        windows, window_length: how much of it. Rungs 4 and 6 need 4096 positions and 16 windows to pass.
        prompts: starts of greedy continuations; none takes the starts of the first windows.
        new_tokens: length of each continuation.
        threads: of both sides.
        allow_portable: accept a bundle that runs without the native kernels.
        provider: where the bundle runs: "cpu", or "cuda" for an NVIDIA GPU; an engine runs on its GPU.
        trust_bundle_code: let machine code inside of a TensorRT engine run.
        progress: called with the fraction done and a text.

    Raises:
        NqEdgeError: NQ-REFERENCE when there is nothing to compare with, NQ-OPTION, NQ-TEXT, NQ-MISSING when PyTorch
            is needed and absent, and whatever opening the bundle or the checkpoint raises.
    """
    progress = progress or _quiet
    started = time.monotonic()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if against is None and (record or text is not None or prompts):
        raise NqEdgeError("NQ-OPTION", "a text, prompts or a recording need the checkpoint.", "Pass --against.")
    if windows < 1 or window_length < 2 or new_tokens < 0:
        raise NqEdgeError("NQ-OPTION", "windows need at least 1, their length at least 2.")
    reference: Reference
    if against is None:
        reference = RecordedReference(bundle)
    else:
        checkpoint = against if isinstance(against, Checkpoint) else Checkpoint(against)
        _check_pair(bundle, checkpoint)
        length = min(window_length, bundle.kv.max_capacity)
        progress(0.0, "rebuilding the dense model in PyTorch")
        live = _torch_reference(checkpoint, threads, str(bundle.source_model.get("embedding", "")))
        _choose(live, bundle, text, windows, length, prompts, new_tokens, progress)
        reference = live
    recorder = Recorder(reference) if record else None

    def opened(extra: tuple[str, ...]) -> Backend:
        return open_backend(
            bundle,
            threads=threads,
            allow_portable=allow_portable,
            provider=provider,
            trust_bundle_code=trust_bundle_code,
            extra_outputs=extra,
        )

    report = _walk(bundle, recorder or reference, opened, progress)
    report = replace(report, seconds=time.monotonic() - started)
    if recorder is not None:
        _store(bundle, recorder, report)
    return report


def _torch_reference(checkpoint: Checkpoint, threads: int | None, embedding: str) -> TorchReference:
    try:
        from .reference import TorchReference
    except ImportError as error:
        raise NqEdgeError(
            "NQ-MISSING",
            f"comparing with a checkpoint needs PyTorch and transformers ({error}).",
            f"Run {install_command('compress')}, or validate against a recorded reference.",
        ) from error
    return TorchReference(checkpoint, threads, embedding)


def _check_pair(bundle: Bundle, checkpoint: Checkpoint) -> None:
    ours = (bundle.compressed_linears, bundle.vocab_size)
    theirs = (len(checkpoint.layers), checkpoint.config.get("vocab_size"))
    if ours != theirs:
        raise NqEdgeError(
            "NQ-REFERENCE",
            f"the bundle has {ours[0]} compressed layers and {ours[1]} tokens, {checkpoint.folder} has {theirs[0]} "
            f"and {theirs[1]}: it was not exported from there.",
            "Pass the checkpoint that the bundle was exported from.",
        )


def _choose(
    reference: TorchReference,
    bundle: Bundle,
    text: str | Path | None,
    windows: int,
    length: int,
    prompts: Sequence[str],
    new_tokens: int,
    progress: Progress,
) -> None:
    if text is None:
        progress(0.05, "sampling windows from the model")
        cut = reference.sample(windows, length, _SEED)
        source = f"sampled from the reference model, seed {_SEED}"
    else:
        ids = np.array(load_tokenizer(bundle.folder).encode(read_text(text)), np.int64)
        cut, source = cut_windows(ids, windows, length), f"text {Path(text).name}"
    starts: list[NDArray[np.int64]]
    if prompts:
        tokenizer = load_tokenizer(bundle.folder)
        starts = [np.array(tokenizer.encode(prompt), np.int64) for prompt in prompts]
    else:
        starts = [row[: min(_PROMPT_TOKENS, length // 2)] for row in cut[:_PROMPTS]]
    for start in starts:
        if not 0 < len(start) <= bundle.kv.max_capacity - new_tokens:
            raise NqEdgeError(
                "NQ-PROMPT",
                f"a prompt of {len(start)} tokens with {new_tokens} new ones does not fit the context of "
                f"{bundle.kv.max_capacity}, or is empty.",
            )
    reference.use(cut, source, starts, new_tokens)


def _walk(bundle: Bundle, reference: Reference, opened: Opener, progress: Progress) -> Report:
    limits = LIMITS[bundle.dtype]
    progress(0.1, "layer and block outputs")
    inner, first = _rung_inner(bundle, reference, opened)
    with opened(()) as backend:
        logits, loss, largest = rungs_logits(
            backend, reference, limits, lambda done, what: progress(0.15 + 0.75 * done, what)
        )
        progress(0.9, "greedy continuations")
        # A failed rung 4 would forgive anything here.
        greedy = rung_greedy(backend, reference, 0.0 if logits.status == "fail" else 2 * largest)
        kernel = backend.kernel
    progress(1.0, "done")
    rungs: tuple[Rung, ...] = (inner, logits, greedy, loss)
    count, length = reference.windows.shape
    folder = str(bundle.folder)
    return Report(
        folder,
        bundle.dtype,
        kernel,
        reference.origin,
        reference.text,
        count,
        length,
        rungs,
        first,
        0.0,
        remarks(bundle),
    )


def _rung_inner(bundle: Bundle, reference: Reference, opened: Opener) -> tuple[Rung, str | None]:
    """Rung 3; of an engine, whose outputs are fixed, on the inner values that it was built to return."""
    expected = reference.inner()
    if bundle.engine is not None:
        known = set(bundle.engine.debug_outputs)
        expected = {name: value for name, value in expected.items() if name in known}
        if not expected:
            note = "the engine returns no inner values; build it with --debug-outputs"
            return Rung(3, INNER, SKIPPED, note=note), None
    with opened(tuple(expected)) as backend:
        ids = reference.windows[0, : reference.inner_tokens]
        return rung_inner(backend, ids, expected, LIMITS[bundle.dtype])


def _store(bundle: Bundle, recorder: Recorder, report: Report) -> None:
    recorder.save(bundle.folder)
    summary = {
        "date": date.today().isoformat(),
        "status": report.status,
        "kernel": report.kernel,
        "text": report.text,
        "rungs": [{"rung": rung.number, "status": rung.status, **rung.figures} for rung in report.rungs],
    }
    outcome = summary if report.status == PASS else report.to_dict()
    replace(bundle, measured={**bundle.measured, "validation": outcome}).write()
