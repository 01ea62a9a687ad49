# SPDX-License-Identifier: Apache-2.0
"""The page of `nq-edge validate --report`: the outcome in words, the steps, where errors are, and what was compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..formats.bundle import Bundle
from ..formats.checkpoint import Checkpoint
from ..formats.tokenizer import Tokenizer, load_tokenizer
from ..system.units import size_text
from ..validation import Report
from .contents import describe_checkpoint
from .inspection import bytes_parts, depth_parts
from .page import Figure, Page, Paragraph, Part, Passage, Section, Span, Table
from .plots import Curve, curve_plot, missing
from .speed import speed_parts
from .versions import footer, versions_table

__all__ = ["Subject", "validation_page"]

#: Tokens of a passage, and how many of the worst are shown.
_PASSAGE, _PASSAGES = 48, 8
#: Points of the curves along the text.
_POINTS = 64
_WORDS = {
    "pass": "computes what its reference computed: every step passed.",
    "fail": "does not compute what its reference computed.",
    "incomplete": "agrees with its reference as far as was compared, but not every step could be proved.",
}
_BLOCK = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    Attributes:
        bundle: what was validated.
        report: how that went.
        checkpoint: what the bundle was exported from, where it is at hand: its rates are shown.
    """

    bundle: Bundle
    report: Report
    checkpoint: Checkpoint | None = None

    @property
    def name(self) -> str:
        """The bundle's folder, which tells two bundles of one model apart."""
        return self.bundle.folder.name


def validation_page(subject: Subject, other: Subject | None = None) -> Page:
    """A page of a validation, or of two side by side.

    Args:
        subject: the bundle that the page judges.
        other: a second bundle to set beside it.

    Example:
        >>> from nanoquant_edge.validation import validate
        >>> bundle = Bundle.open("bundle")
        >>> validation_page(Subject(bundle, validate(bundle, "checkpoint", threads=1))).state
        'pass'
    """
    subjects = [subject] if other is None else [subject, other]
    report = subject.report
    verdict = f"{subject.name} {_WORDS[report.status]}"
    if report.first_diverging:
        verdict += f" The first value that differs is {report.first_diverging}."
    if other is not None:
        verdict += f" {other.name}, beside it, {_WORDS[other.report.status]}"
    title = f"Validation of {subject.name}" + (f" beside {other.name}" if other else "")
    return Page(title, verdict, report.status, list(_sections(subjects)), footer())


def _sections(subjects: Sequence[Subject]) -> list[Section]:
    sections = [Section("Steps", _steps(subjects)), Section("Errors of layers and blocks", _layers(subjects))]
    sections.append(Section("Along the text", _along(subjects)))
    for subject in subjects:
        title = "Worst passages" + (f" of {subject.name}" if len(subjects) > 1 else "")
        sections.append(Section(title, _passages(subject)))
    for subject in subjects:
        of = f" ({subject.name})" if len(subjects) > 1 else ""
        if subject.checkpoint is not None:
            contents = describe_checkpoint(subject.checkpoint)
            sections.append(Section(f"Rates by layer and kind{of}", depth_parts(contents["layers"])))
            sections.append(Section(f"Bytes by part of the checkpoint{of}", bytes_parts(contents["bytes"])))
        sizes = {name: entry.size for name, entry in subject.bundle.files.items()}
        sections.append(Section(f"Bytes of the bundle{of}", bytes_parts(sizes)))
        sections.append(Section(f"Speed and memory{of}", speed_parts(subject.bundle)))
        sections.append(Section(f"Versions and hashes{of}", [_files(subject.bundle), versions_table()]))
    return sections


def _steps(subjects: Sequence[Subject]) -> list[Part]:
    parts: list[Part] = []
    for subject in subjects:
        report = subject.report
        what = (
            f"{subject.name}: {report.dtype}, kernel {report.kernel}, against "
            f"{'PyTorch' if report.reference == 'torch' else 'a recorded reference'}, {report.windows} windows of "
            f"{report.window_length} tokens ({report.text}), {report.seconds:.0f} s."
        )
        steps = list(report.steps.values())
        rows = [(step.title, step.status, "\n".join(step.measured), step.note) for step in steps]
        parts += [
            Paragraph(what),
            Table(("compared", "outcome", "measured (limit)", "note"), rows, [step.status for step in steps]),
            *(Paragraph(f"Note: {remark}") for remark in report.remarks),
        ]
    return parts


def _layers(subjects: Sequence[Subject]) -> list[Part]:
    curves, rows, limit = [], [], None
    for subject in subjects:
        details, step = subject.report.details, subject.report.steps.get("layers")
        if details is None or not details.inner:
            continue
        limit = step.limits.get("largest error") if step else None
        of = f", {subject.name}" if len(subjects) > 1 else ""
        places = [_place(name, index) for index, name in enumerate(details.inner)]
        errors = [error.error for error in details.inner.values()]
        blocks = [index for index, name in enumerate(details.inner) if _is_block(name)]
        layers = [index for index in range(len(errors)) if index not in set(blocks)]
        curves.append(Curve(f"layers{of}", [places[i] for i in layers], [errors[i] for i in layers], dots=True))
        curves.append(Curve(f"blocks{of}", [places[i] for i in blocks], [errors[i] for i in blocks]))
        worst = sorted(details.inner.items(), key=lambda item: -item[1].error)[:5]
        rows += [
            (subject.name, name.removesuffix(".output"), f"{e.error:.3g}", f"{e.channel:.3g}") for name, e in worst
        ]
    if not curves:
        return [Paragraph("Inner values were not compared, so nothing is known of single layers.")]
    svg = curve_plot(curves, x_title="block", y_title="relative error", logarithmic=True, limit=limit)
    caption = "Relative error of each compressed layer's and each block's output, over the blocks of the model."
    parts: list[Part] = [Figure(svg, caption)] if svg else [Paragraph(missing() or "All errors are zero.")]
    return [*parts, Table(("bundle", "largest errors at", "error", "worst channel"), rows)]


def _is_block(name: str) -> bool:
    """Whether a value is a block's output rather than a layer's: its name ends with the block's number."""
    return name.removesuffix(".output").rsplit(".", 1)[-1].isdigit()


def _place(name: str, index: int) -> float:
    found = _BLOCK.search(name.removesuffix(".output"))
    return float(found[1]) if found else float(index)


def _along(subjects: Sequence[Subject]) -> list[Part]:
    divergence, agreement = [], []
    for subject in subjects:
        details = subject.report.details
        if details is None:
            continue
        pieces = np.array_split(np.arange(details.kl.shape[1]), min(_POINTS, details.kl.shape[1]))
        x = [float(piece.mean()) for piece in pieces]
        divergence.append(Curve(subject.name, x, [float(details.kl[:, piece].mean()) for piece in pieces]))
        agreement.append(Curve(subject.name, x, [100 * float(details.same[:, piece].mean()) for piece in pieces]))
    if not divergence:
        return [Paragraph("No text was compared.")]
    pictures = (
        (curve_plot(divergence, x_title="token of the window", y_title="KL, nats", logarithmic=True),
         "Divergence from the reference's next-token distribution along a window, mean of all windows."),
        (curve_plot(agreement, x_title="token of the window", y_title="same likeliest token, %",
                    y_range=_agreement_range(agreement)),
         "Share of windows in which both sides have the same likeliest next token."),
    )  # fmt: skip
    drawn: list[Part] = [Figure(svg, caption) for svg, caption in pictures if svg]
    return drawn or [Paragraph(missing() or "Both sides are equal everywhere.")]


def _agreement_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """A range of percent that shows the least of all curves, and at least the last five percent."""
    return min(95.0, *(value - 1 for curve in curves for value in curve.y)), 100.5


def _passages(subject: Subject) -> list[Part]:
    """The passages with the largest mean divergence, worst first."""
    details = subject.report.details
    if details is None:
        return [Paragraph("No text was compared.")]
    length = min(_PASSAGE, details.kl.shape[1])
    starts = range(0, details.kl.shape[1] - length + 1, length)
    means = sorted(
        ((float(details.kl[window, start : start + length].mean()), window, start)
         for window in range(len(details.kl)) for start in starts),
        key=lambda entry: (-np.nan_to_num(entry[0], nan=np.inf), entry[1], entry[2]),
    )  # fmt: skip
    tokenizer = load_tokenizer(subject.bundle.folder)
    # Darkness is held against the limit of the mean, so that rounding noise stays pale.
    limit = (
        float(subject.report.steps["logits"].limits.get("mean KL", 0.0)) if "logits" in subject.report.steps else 0.0
    )
    largest = float(np.nanmax(details.kl)) if np.isfinite(details.kl).any() else 1.0
    top = max(largest, limit)
    parts: list[Part] = [
        Paragraph(
            "The darker a token, the further the distribution after it is from the reference's; wavy underlines mark "
            f"tokens after which the likeliest next token is another one. The largest divergence is {largest:.3g} nats."
        )
    ]
    for mean, window, start in means[:_PASSAGES]:
        places = slice(start, start + length)
        heading = f"Window {window + 1}, tokens {start + 1} to {start + length}: mean KL {mean:.3g} nats"
        texts = _texts(tokenizer, [int(i) for i in details.windows[window, places]])
        spans = [
            Span(text, _heat(float(kl), top), not same, f"KL {kl:.3g} nats")
            for text, kl, same in zip(texts, details.kl[window, places], details.same[window, places], strict=True)
        ]
        parts.append(Passage(heading, spans))
    return parts


def _heat(kl: float, top: float) -> float:
    """How dark a token is, 0 to 0.75; rounding can leave a KL a little below nothing, and no number at all is worst."""
    if not np.isfinite(kl):
        return 0.75
    return 0.75 * min(1.0, max(kl, 0.0) / top) ** 0.5 if top > 0 else 0.0


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character of several tokens stands with its last."""
    texts, shown = [], ""
    for count in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:count], skip_special_tokens=False)
        finished = whole if count == len(ids) else whole.rstrip("\ufffd")
        texts.append(finished[len(shown) :] if finished.startswith(shown) else "")
        shown = finished if finished.startswith(shown) else shown
    return texts


def _files(bundle: Bundle) -> Table:
    rows = [(name, size_text(entry.size), entry.sha256) for name, entry in bundle.files.items()]
    return Table(("file", "size", "SHA-256"), rows)
