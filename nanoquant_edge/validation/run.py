# SPDX-License-Identifier: Apache-2.0
"""`validate`: open both sides, compare them step by step, report. PyTorch is imported only to compute a reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from ..formats.checkpoint import Checkpoint
from ..runtimes import Backend, Target, load_tokenizer
from ..runtimes.target import is_checkpoint
from ..system.extras import install_command
from ..system.progress import Progress, Show
from .expected import Reference
from .options import ValidationKeywords, ValidationOptions
from .recorded import RecordedReference, Recorder
from .report import FAIL, LAYERS, PASS, SKIPPED, Report, Step
from .steps import LIMITS, LayerOutcome, Limits, compare_greedy, compare_layers, compare_logits
from .text import cut_windows, read_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .reference import TorchReference

__all__ = ["compare", "validate"]

#: Names of inner values to return -> an open backend.
Opener = Callable[[tuple[str, ...]], Backend]

#: Greedy continuations when no prompts are given: the first tokens of this many windows.
_PROMPTS = 4
_PROMPT_TOKENS = 16
_SEED = 0


def validate(
    model: str | Path | Bundle,
    against: str | Path | Checkpoint | None = None,
    *,
    options: ValidationOptions | None = None,
    progress: Show | None = None,
    **keywords: Unpack[ValidationKeywords],
) -> Report:
    """Compare a bundle with PyTorch, or with what PyTorch recorded in it; or a checkpoint on a device with PyTorch.

    Args:
        model: what an export or a compression wrote.
        against: the checkpoint it came from; None uses the bundle's recorded reference and needs no PyTorch, and of a
            checkpoint it is that itself.
        options: what is compared.
        progress: told how far it is.
        **keywords: fields of `ValidationOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: NQ-REFERENCE when there is nothing to compare with, NQ-OPTION, NQ-TEXT, NQ-MISSING when PyTorch
            is needed and absent, and whatever opening the bundle or the checkpoint raises.

    Example:
        >>> report = validate("bundle", "checkpoint", threads=1)
        >>> report.status, list(report.steps)
        ('pass', ['layers', 'logits', 'greedy', 'perplexity'])
    """
    options = replace(options or ValidationOptions(), **keywords)
    told = Progress.to(progress)
    started = time.monotonic()
    target = Target.of(model, options, tell=lambda text: told(0.0, text))
    if against is None and not isinstance(model, Bundle) and is_checkpoint(model):
        against = model
    bundle = target.bundle
    if options.record and bundle is None:
        raise NqEdgeError("NQ-OPTION", "a recording is stored in a bundle, and this is a checkpoint.", "Export it.")
    if against is None and (options.record or options.text is not None or options.prompts):
        raise NqEdgeError("NQ-OPTION", "a text, prompts or a recording need the checkpoint.", "Pass --against.")
    reference: Reference
    if against is None:
        assert bundle is not None  # a checkpoint is held against itself
        reference = RecordedReference(bundle)
    else:
        checkpoint = against if isinstance(against, Checkpoint) else Checkpoint(against)
        reference = _live_reference(target, checkpoint, options, told.part(0.0, 0.1))
    recorder = Recorder(reference) if options.record else None

    def opener(extra: tuple[str, ...]) -> Backend:
        return target.open(options, extra)

    dtype = target.dtype(options)
    report = compare(target, recorder or reference, opener=opener, dtype=dtype, progress=told.part(0.1, 1.0))
    report = replace(report, seconds=time.monotonic() - started, remarks=target.remarks(options))
    if recorder is not None:
        assert bundle is not None
        recorder.save(bundle.folder)
        outcome = report.summary() if report.status == PASS else report.to_dict()
        outcome = {"date": date.today().isoformat(), **outcome}
        replace(bundle, measured={**bundle.measured, "validation": outcome}).write()
    return report


def compare(
    target: Target, reference: Reference, *, opener: Opener, dtype: str, progress: Progress | None = None
) -> Report:
    """All steps of a validation, with a reference that is ready.

    Args:
        target: what is compared.
        reference: what it is compared with.
        dtype: type of its activations, which sets the limits.
        opener: opens the bundle's backend; it is told which inner values to return beside the logits.
        progress: told how far it is.
    """
    progress = progress or Progress()
    limits = LIMITS[dtype]
    progress(0.0, "layer and block outputs")
    layers = _layers(target, reference, opener, limits)
    with opener(()) as backend:
        found = compare_logits(backend, reference, limits=limits, progress=progress.part(0.05, 0.9))
        progress(0.9, "greedy continuations")
        # Logits that failed would forgive anything here.
        greedy = compare_greedy(backend, reference, 0.0 if found.logits.status == FAIL else 2 * found.largest)
        kernel = backend.kernel
    progress(1.0, "done")
    count, length = reference.windows.shape
    return Report(
        bundle=str(target.folder),
        dtype=dtype,
        kernel=kernel,
        reference=reference.origin,
        text=reference.text,
        windows=count,
        window_length=length,
        steps={step.name: step for step in (layers.step, found.logits, greedy, found.perplexity)},
        first_diverging=layers.first,
        seconds=0.0,
        remarks=target.remarks(),
        device=target.device,
        details=replace(found.details, inner=layers.errors),
    )


def _layers(target: Target, reference: Reference, opener: Opener, limits: Limits) -> LayerOutcome:
    """The step `layers`; of an engine, whose outputs are fixed, on the inner values that it was built to return."""
    expected = reference.inner()
    if target.bundle is not None and target.bundle.engine is not None:
        known = set(target.bundle.engine.debug_outputs)
        expected = {name: value for name, value in expected.items() if name in known}
        if not expected:
            note = "the engine returns no inner values; build it with --debug-outputs"
            return LayerOutcome(Step(LAYERS, SKIPPED, note=note))
    with opener(tuple(expected)) as backend:
        ids = reference.windows[0, : reference.inner_tokens]
        return compare_layers(backend, ids, expected=expected, limits=limits)


def _live_reference(
    target: Target, checkpoint: Checkpoint, options: ValidationOptions, progress: Progress
) -> TorchReference:
    """PyTorch's side, with its windows and prompts chosen."""
    _check_pair(target, checkpoint)
    progress(0.0, "rebuilding the dense model in PyTorch")
    try:
        from .reference import TorchReference
    except ImportError as error:
        raise NqEdgeError(
            "NQ-MISSING",
            f"comparing with a checkpoint needs PyTorch and transformers ({error}).",
            f"Run {install_command('compress')}, or validate against a recorded reference.",
        ) from error
    reference = TorchReference(checkpoint, options.running_threads, target.table(options))
    length = min(options.window_length, options.max_context or target.context)
    if options.text is None:
        progress(0.5, "sampling windows from the model")
        windows = reference.sample(options.windows, length, _SEED)
        source = f"sampled from the reference model, seed {_SEED}"
    else:
        ids = np.array(load_tokenizer(target.folder).encode(read_text(options.text)), np.int64)
        windows, source = cut_windows(ids, options.windows, length), f"text {Path(options.text).name}"
    reference.use(windows, source, prompts=_prompts(target, windows, options), new_tokens=options.new_tokens)
    return reference


def _prompts(target: Target, windows: NDArray[np.int64], options: ValidationOptions) -> list[NDArray[np.int64]]:
    """Token ids of the prompts, or the starts of the first windows.

    Raises:
        NqEdgeError: NQ-PROMPT when one does not fit the context together with its continuation.
    """
    if options.prompts:
        tokenizer = load_tokenizer(target.folder)
        starts = [np.array(tokenizer.encode(prompt), np.int64) for prompt in options.prompts]
    else:
        starts = [row[: min(_PROMPT_TOKENS, windows.shape[1] // 2)] for row in windows[:_PROMPTS]]
    for start in starts:
        if not 0 < len(start) <= target.context - options.new_tokens:
            raise NqEdgeError(
                "NQ-PROMPT",
                f"a prompt of {len(start)} tokens with {options.new_tokens} new ones does not fit the context of "
                f"{target.context}, or is empty.",
            )
    return starts


def _check_pair(target: Target, checkpoint: Checkpoint) -> None:
    of_bundle = (target.layers, target.vocab_size)
    of_checkpoint = (len(checkpoint.layers), checkpoint.config.get("vocab_size"))
    if of_bundle != of_checkpoint:
        raise NqEdgeError(
            "NQ-REFERENCE",
            f"the bundle has {of_bundle[0]} compressed layers and {of_bundle[1]} tokens, {checkpoint.folder} has "
            f"{of_checkpoint[0]} and {of_checkpoint[1]}: it was not exported from there.",
            "Pass the checkpoint that the bundle was exported from.",
        )
