# SPDX-License-Identifier: Apache-2.0
"""The page of `nq-edge compress --report`: errors of the blocks, where the time went, rates, and how it was made."""

from __future__ import annotations

from typing import Any

from ..formats.checkpoint import Checkpoint
from ..system.units import bits_text, size_text
from .contents import describe_checkpoint
from .inspection import bytes_parts, depth_parts
from .page import Figure, Page, Paragraph, Part, Section, Table
from .plots import Bars, Curve, bar_plot, curve_plot, missing
from .versions import footer, versions_table

__all__ = ["compression_page"]

#: Settings that the page leaves to the sections that show them better.
_SHOWN_ELSEWHERE = {"block_errors", "stage_seconds", "kd_loss"}


def compression_page(checkpoint: Checkpoint) -> Page:
    """A page of how a checkpoint came about, from what it says of itself.

    Args:
        checkpoint: one that `compress` wrote; an imported one has fewer figures to show.

    Example:
        >>> compression_page(Checkpoint("checkpoint")).title
        'Compression of checkpoint'
    """
    contents, recipe = describe_checkpoint(checkpoint), checkpoint.settings.recipe
    verdict = (
        f"{len(contents['layers'])} layers are stored at {contents['measured_bpw']:.3f} bits per weight (asked for "
        f"{bits_text(checkpoint.settings.target_bpw)}); the folder has {size_text(contents['total_bytes'])}."
    )
    losses = _numbers(recipe.get("kd_loss"))
    if len(losses) == 2:
        verdict += f" Its KL divergence to the dense model went from {losses[0]:.3f} to {losses[1]:.3f} nats."
    sections = [
        Section("Errors of the blocks", _blocks(recipe)),
        Section("Where the time went", _stages(recipe)),
        Section("Rates by layer and kind", depth_parts(contents["layers"])),
        Section("Bytes by part", bytes_parts(contents["bytes"])),
        Section("How it was made", [_settings(recipe), _settings(checkpoint.settings.calibration)]),
        Section("Versions", [versions_table()]),
    ]
    return Page(f"Compression of {checkpoint.name}", verdict, "", sections, footer())


def _blocks(recipe: dict[str, Any]) -> list[Part]:
    errors = _numbers(recipe.get("block_errors"))
    if not errors:
        return [Paragraph("The checkpoint does not record the errors of its blocks.")]
    svg = curve_plot(
        [Curve("weighted error", list(range(len(errors))), errors)], x_title="block", y_title="relative error"
    )
    caption = "Weighted relative error of the factorization, mean over each block's layers, before tuning."
    drawn: Part = Figure(svg, caption) if svg else Paragraph(missing() or "All errors are zero.")
    worst = sorted(range(len(errors)), key=lambda block: -errors[block])[:5]
    return [drawn, Table(("largest errors", ""), [(f"block {block}", f"{errors[block]:.3f}") for block in worst])]


def _stages(recipe: dict[str, Any]) -> list[Part]:
    seconds = recipe.get("stage_seconds")
    named = seconds if isinstance(seconds, dict) else {}
    found = {str(name): float(value) for name, value in named.items() if isinstance(value, int | float)}
    if not found:
        return [Paragraph("The checkpoint does not record how long its stages took.")]
    svg = bar_plot(list(found), [Bars("seconds", list(found.values()))], x_title="seconds")
    parts: list[Part] = [Figure(svg, "Seconds of each stage.")] if svg else []
    return [*parts, Table(("stage", "seconds"), [(name, f"{value:.1f}") for name, value in found.items()])]


def _settings(entries: dict[str, Any]) -> Table:
    rows = [(str(name), str(value)) for name, value in entries.items() if name not in _SHOWN_ELSEWHERE]
    return Table(("setting", "value"), rows)


def _numbers(value: Any) -> list[float]:
    """The numbers of a list that a stranger's checkpoint may hold anything in; none where one is no number."""
    whole = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return [float(item) for item in value] if whole else []
