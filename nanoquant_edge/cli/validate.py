# SPDX-License-Identifier: Apache-2.0
"""`nq-edge validate`: exit status 0 when every step passed, 1 when one failed or could not run, 2 for an error."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NqEdgeError
from .arguments import InputPath, OutputPath
from .opening import opening_options
from .paths import check_kind, kind_of
from .progress import shown_progress
from .streams import echo_json

if TYPE_CHECKING:
    from ..validation import Report, ValidationOptions

__all__ = ["command"]


@click.command("validate")
@click.argument("bundle", type=InputPath())
@click.option(
    "--against",
    type=InputPath(),
    help="Checkpoint to compare with, through PyTorch; without it a bundle's recorded reference is used.",
)
@click.option("--record", is_flag=True, help="Store PyTorch's side in the bundle, for boards without PyTorch.")
@click.option("--text", type=InputPath(), help="UTF-8 text; without it the model writes its own.")
@click.option("--windows", type=click.IntRange(1, 4096), default=16, show_default=True, help="Windows of text.")
@click.option(
    "--length",
    "window_length",
    type=click.IntRange(2, 32768),
    default=256,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--prompt", "prompts", multiple=True, help="Start of a greedy continuation; several times.")
@click.option(
    "--report",
    "reports",
    type=OutputPath(),
    multiple=True,
    help="Write a page with the errors drawn and the worst passages, .html or .md; several times.",
)
@click.option("--compare", type=InputPath(), help="A second bundle, validated alike and set beside BUNDLE in --report.")
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    against: Path | None,
    *,
    reports: tuple[Path, ...],
    compare: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Prove that BUNDLE, or a checkpoint on a device, computes what PyTorch computed.

    Compares the outputs of layers and blocks, logits, greedy text and perplexity, and names the first layer that
    differs. Exit status: 0 when all passed, 1 when something failed or could not be proved, 2 for an error.
    """
    from ..reports.page import check_report_path
    from ..validation import ValidationOptions, validate

    check_kind(bundle, "bundle", "engine", "checkpoint", code="NQ-BUNDLE")
    if reports and kind_of(bundle) == "checkpoint":
        raise NqEdgeError("NQ-OPTION", "a page is about a bundle, and this is a checkpoint.", "Export it first.")
    if against is not None:
        check_kind(against, "checkpoint", code="NQ-CKPT")
    for path in reports:
        check_report_path(path)
    if compare is not None:
        if not reports:
            raise NqEdgeError("NQ-OPTION", "--compare sets two bundles side by side on a page.", "Add --report.")
        check_kind(compare, "bundle", "engine", code="NQ-BUNDLE")
    chosen = ValidationOptions(**options)
    if against is not None and chosen.text is None and not as_json:
        click.echo("No --text: windows are sampled from the reference model itself.", err=True)
    with shown_progress("validate") as progress:
        report = validate(bundle, against, options=chosen, progress=progress)
    if reports:
        other = None if compare is None else (compare, _beside(compare, against, chosen))
        _write_pages(reports, (bundle, report), against, other=other)
    if as_json:
        echo_json(report.to_dict(), indent=2)
    else:
        report.print()
    sys.exit(0 if report.passed else 1)


def _beside(bundle: Path, against: Path | None, options: ValidationOptions) -> Report:
    """The second bundle's validation; nothing is recorded in it."""
    from ..validation import validate

    with shown_progress("validate the second bundle") as progress:
        return validate(bundle, against, options=replace(options, record=False), progress=progress)


def _write_pages(
    paths: tuple[Path, ...],
    judged: tuple[Path, Report],
    against: Path | None,
    *,
    other: tuple[Path, Report] | None,
) -> None:
    from ..formats.bundle import Bundle
    from ..formats.checkpoint import Checkpoint
    from ..reports.page import save_page
    from ..reports.validation import Subject, validation_page

    checkpoint = None if against is None else Checkpoint(against)

    def subject(pair: tuple[Path, Report]) -> Subject:
        return Subject(Bundle.open(pair[0], verify=False), pair[1], checkpoint)

    page = validation_page(subject(judged), None if other is None else subject(other))
    for path in paths:
        click.echo(f"Report: {save_page(page, path)}", err=True)
