# SPDX-License-Identifier: Apache-2.0
"""The steps that compare a bundle with a reference, and their limits.

layers: outputs of every compressed layer and block on the first tokens of a window, in order of computation; the first
   that differs is named.
logits: on at least 4096 positions, the cosine of every position, mean KL, and share of equal likeliest tokens.
greedy: continuations, one token at a time, are equal, except where the reference's two likeliest tokens are nearer to
   each other than twice the largest error of the logits. From such a position on the reference's own tokens are fed.
perplexity: over at least 16 windows.

Two more, `packing` and `kernel`, are tests of the packed format and of the kernels, and need no bundle.
Nothing here imports PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..runtimes import Backend
from ..system.progress import Progress
from .compare import InnerError, LogitFigures, inner_error, next_token_loss
from .details import Details
from .expected import Reference
from .perplexity import window_logits
from .report import FAIL, GREEDY, LAYERS, LOGITS, PASS, PERPLEXITY, SKIPPED, Step

__all__ = [
    "LIMITS",
    "MIN_POSITIONS",
    "MIN_WINDOWS",
    "LayerOutcome",
    "Limits",
    "LogitOutcome",
    "compare_greedy",
    "compare_layers",
    "compare_logits",
]

MIN_POSITIONS = 4096
MIN_WINDOWS = 16


@dataclass(frozen=True)
class Limits:
    """What a bundle must keep to.

    Attributes:
        inner: relative error of a layer's or block's output; a single channel may have ten times that.
        cosine: smallest cosine of a position's logits.
        kl: largest mean KL(reference || bundle) in nats.
        top1: smallest share of positions with the same likeliest token.
        perplexity: largest relative difference.
    """

    inner: float
    cosine: float
    kl: float
    top1: float
    perplexity: float = 0.005


_SIXTEEN_BIT = {"cosine": 0.999, "kl": 1e-3, "top1": 0.98}
#: activation type of the bundle -> limits
LIMITS = {
    "float32": Limits(inner=1e-3, cosine=0.9999, kl=1e-4, top1=0.99),
    "float16": Limits(inner=2e-2, **_SIXTEEN_BIT),
    "bfloat16": Limits(inner=5e-2, **_SIXTEEN_BIT),
}
#: Room for a single channel over the whole value.
_CHANNEL = 10


@dataclass(frozen=True)
class LayerOutcome:
    """What the step `layers` found.

    Attributes:
        step: the step.
        first: name of the first value that differs, None when none does.
        errors: value name -> its error, in order of computation.
    """

    step: Step
    first: str | None = None
    errors: dict[str, InnerError] = field(default_factory=dict)


@dataclass(frozen=True)
class LogitOutcome:
    """What comparing logits found.

    Attributes:
        logits, perplexity: the two steps.
        largest: largest difference of two logits that was seen.
        details: KL and agreement of every position.
    """

    logits: Step
    perplexity: Step
    largest: float
    details: Details


def compare_layers(
    backend: Backend, ids: NDArray[np.int64], *, expected: dict[str, NDArray[np.float32]], limits: Limits
) -> LayerOutcome:
    """The step `layers`.

    Args:
        backend: opened with the names of the inner values as extra outputs.
        ids: int64 (tokens,), the first tokens of a window.
        expected: the reference's inner values for them, in order of computation.
        limits: of the bundle's type.
    """
    if not expected:
        return LayerOutcome(Step(LAYERS, SKIPPED, note="the reference has no inner values"))
    backend.reset()
    backend.forward(ids[None])
    found = {name: value[0] for name, value in backend.extra.items()}
    first, worst_name = None, ""
    worst = InnerError(0.0, 0.0)
    errors: dict[str, InnerError] = {}
    differing = 0
    for name, value in expected.items():
        seen = errors[name] = inner_error(value, found[name].reshape(len(found[name]), -1))
        if not seen.error <= worst.error:
            worst, worst_name = seen, name
        if not (seen.error <= limits.inner and seen.channel <= _CHANNEL * limits.inner):
            differing += 1
            first = first or name.removesuffix(".output")
    figures: dict[str, float | int] = {"values": len(expected), "differing": differing, "largest error": worst.error}
    note = f"largest at {worst_name.removesuffix('.output')}" if worst_name else ""
    if first is not None:
        note = f"{first} is the first that differs"
    bounds: dict[str, float | int] = {"largest error": limits.inner, "differing": 0}
    return LayerOutcome(Step(LAYERS, PASS if first is None else FAIL, figures, bounds, note), first, errors)


def compare_logits(backend: Backend, reference: Reference, *, limits: Limits, progress: Progress) -> LogitOutcome:
    """The steps `logits` and `perplexity`, window by window."""
    everywhere, whole = LogitFigures(), LogitFigures()
    expected_losses, found_losses = [], []
    for index, row in enumerate(reference.windows):
        expected = reference.window(index)
        all_known = len(expected.positions) == len(row)
        loss = 0.0
        for start, logits in window_logits(backend, row):
            stop = start + len(logits)
            known = slice(*np.searchsorted(expected.positions, [start, stop]))
            if known.stop > known.start:
                whole.add(expected.logits[known], logits[expected.positions[known] - start])
            if not all_known:
                part = slice(start, stop)
                everywhere.add_top(
                    expected.top_ids[part], expected.top_logits[part], log_sum=expected.log_sum[part], found=logits
                )
            targets = row[start + 1 : stop + 1]
            loss += next_token_loss(logits[: len(targets)], targets)
        expected_losses.append(expected.loss)
        found_losses.append(loss / (len(row) - 1))
        progress((index + 1) / len(reference.windows), f"window {index + 1} of {len(reference.windows)}")
    if not everywhere.positions:
        everywhere = whole
    largest = float(np.maximum(everywhere.max_error, whole.max_error))
    shape = reference.windows.shape
    details = Details(
        windows=reference.windows,
        kl=np.concatenate(everywhere.kl_pieces).reshape(shape),
        same=np.concatenate(everywhere.same_pieces).reshape(shape),
    )
    return LogitOutcome(
        _logits_step(everywhere, whole, largest, limits),
        _perplexity_step(expected_losses, found_losses, limits),
        largest,
        details,
    )


def _logits_step(everywhere: LogitFigures, whole: LogitFigures, largest: float, limits: Limits) -> Step:
    figures: dict[str, float | int] = {
        "positions": everywhere.positions,
        "smallest cosine": float(np.minimum(everywhere.cosine_min, whole.cosine_min)),
        "mean KL": everywhere.kl,
        "largest KL": float(np.maximum(everywhere.kl_max, whole.kl_max)),
        "same top-1": everywhere.top1,
        "largest error": largest,
    }
    bounds: dict[str, float | int] = {
        "positions": MIN_POSITIONS,
        "smallest cosine": limits.cosine,
        "mean KL": limits.kl,
        "same top-1": limits.top1,
    }
    good = figures["smallest cosine"] >= limits.cosine and everywhere.kl <= limits.kl
    good = good and everywhere.top1 >= limits.top1
    notes = []
    if everywhere is not whole:
        figures["whole rows"] = whole.positions
        if whole.positions:
            figures["mean KL, whole rows"], bounds["mean KL, whole rows"] = whole.kl, limits.kl
            good = good and whole.kl <= limits.kl
        notes.append("elsewhere over the recorded likeliest tokens; their KL is a lower bound")
    if not good:
        return Step(LOGITS, FAIL, figures, bounds, "; ".join(notes))
    if everywhere.positions < MIN_POSITIONS:
        notes.insert(0, f"{everywhere.positions} of the {MIN_POSITIONS} positions that prove it; all within limits")
        return Step(LOGITS, SKIPPED, figures, bounds, "; ".join(notes))
    return Step(LOGITS, PASS, figures, bounds, "; ".join(notes))


def _perplexity_step(expected: list[float], found: list[float], limits: Limits) -> Step:
    reference = _exp(sum(expected) / len(expected))
    bundle = _exp(sum(found) / len(found))
    difference = abs(bundle / reference - 1)
    figures: dict[str, float | int] = {
        "windows": len(expected),
        "reference": reference,
        "bundle": bundle,
        "relative difference": difference,
    }
    bounds: dict[str, float | int] = {"windows": MIN_WINDOWS, "relative difference": limits.perplexity}
    if not difference <= limits.perplexity:
        return Step(PERPLEXITY, FAIL, figures, bounds)
    if len(expected) < MIN_WINDOWS:
        note = f"{len(expected)} of the {MIN_WINDOWS} windows that prove it; within the limit"
        return Step(PERPLEXITY, SKIPPED, figures, bounds, note)
    return Step(PERPLEXITY, PASS, figures, bounds)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def compare_greedy(backend: Backend, reference: Reference, allowance: float) -> Step:
    """The step `greedy`.

    Args:
        backend: an open backend.
        reference: what to compare with.
        allowance: a different token is forgiven where the reference's gap is smaller than this.
    """
    tokens = near = wrong = 0
    note = ""
    runs = reference.greedy()
    for number, run in enumerate(runs):
        backend.reset()
        logits = backend.forward(run.prompt[None])[0, -1]
        for step, token in enumerate(run.tokens):
            chosen = int(logits.argmax())
            tokens += 1
            # argmax of a row with a NaN is the NaN's index: not a choice
            if chosen != token or not math.isfinite(float(logits[chosen])):
                if run.gaps[step] < allowance and math.isfinite(float(logits[chosen])):
                    near += 1
                else:
                    wrong += 1
                    note = note or f"prompt {number}, token {step}: {chosen} instead of {token}"
            if step + 1 < len(run.tokens):
                logits = backend.forward(np.array([[token]], np.int64))[0, -1]
    figures: dict[str, float | int] = {"prompts": len(runs), "tokens": tokens, "near ties": near, "different": wrong}
    figures["forgiven gap"] = allowance
    if not tokens:
        return Step(GREEDY, SKIPPED, figures, {"different": 0}, "the reference has no continuations")
    return Step(GREEDY, FAIL if wrong else PASS, figures, {"different": 0}, note)
