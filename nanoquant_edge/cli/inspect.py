# SPDX-License-Identifier: Apache-2.0
"""`nq-edge inspect`: what a checkpoint or a bundle holds and where its bytes are, from headers alone."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import InputPath, OutputPath
from .paths import check_kind
from .streams import echo_json

__all__ = ["command"]


@click.command(name="inspect")
@click.argument("folder", type=InputPath())
@click.option("--layers", is_flag=True, help="List every compressed layer instead of each type of layer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--html", type=OutputPath(), help="Write a page with ranks, bits over depth and bytes, .html or .md.")
def command(folder: Path, *, layers: bool, as_json: bool, html: Path | None) -> None:
    """Show what FOLDER holds, a checkpoint or a bundle, and where its bytes are.

    Of a checkpoint: compressed layers, their ranks and true bits per weight, how it was made. Of a bundle: what runs
    it, its context and cache, its files. Only headers are read.
    """
    from ..formats.bundle import MANIFEST_FILE
    from ..reports.contents import describe_bundle, describe_checkpoint
    from ..reports.page import check_report_path, save_page

    if html is not None:
        check_report_path(html)
    check_kind(folder, "checkpoint", "bundle", "engine", "build folder", code="NQ-CKPT")
    if (folder / MANIFEST_FILE).is_file():
        report = describe_bundle(folder)
    else:
        from ..formats.checkpoint import Checkpoint

        report = describe_checkpoint(Checkpoint(folder))
    if html is not None:
        from ..reports.inspection import inspection_page

        save_page(inspection_page(report), html)
    if as_json:
        echo_json(report, indent=2)
        return
    from .inspect_report import print_bundle, print_checkpoint

    if "layers" in report:
        print_checkpoint(report, every_layer=layers)
    else:
        print_bundle(report)
