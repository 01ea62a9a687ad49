# SPDX-License-Identifier: Apache-2.0
"""`nq-edge validate`: exit status 0 when every step passed, 1 when one failed or could not run, 2 for an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .arguments import InputPath
from .opening import opening_options
from .paths import check_kind
from .progress import shown_progress
from .streams import echo_json

__all__ = ["command"]


@click.command("validate")
@click.argument("bundle", type=InputPath())
@click.option(
    "--against",
    type=InputPath(),
    help="Checkpoint to compare with, through PyTorch; without it the bundle's recorded reference is used.",
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
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: Path, against: Path | None, as_json: bool, **options: Any) -> None:
    """Prove that BUNDLE computes what PyTorch computed.

    Compares the outputs of layers and blocks, logits, greedy text and perplexity, and names the first layer that
    differs. Exit status: 0 when all passed, 1 when something failed or could not be proved, 2 for an error.
    """
    from ..validation import ValidationOptions, validate

    check_kind(bundle, "bundle", "engine", code="NQ-BUNDLE")
    if against is not None:
        check_kind(against, "checkpoint", code="NQ-CKPT")
    chosen = ValidationOptions(**options)
    if against is not None and chosen.text is None and not as_json:
        click.echo("No --text: windows are sampled from the reference model itself.", err=True)
    with shown_progress("validate") as progress:
        report = validate(bundle, against, options=chosen, progress=progress)
    if as_json:
        echo_json(report.to_dict(), indent=2)
    else:
        report.print()
    sys.exit(0 if report.passed else 1)
