# SPDX-License-Identifier: Apache-2.0
"""`nq-edge validate`: exit status 0 when every rung passed, 1 when one failed or could not run, 2 for an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

__all__ = ["command"]


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Checkpoint to compare with, through PyTorch; without it the bundle's recorded reference is used.",
)
@click.option("--record", is_flag=True, help="Store PyTorch's side in the bundle, for boards without PyTorch.")
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 text; without it the model writes its own.")
@click.option("--windows", type=click.IntRange(1, 4096), default=16, show_default=True, help="Windows of text.")
@click.option("--length", type=click.IntRange(2, 32768), default=256, show_default=True, help="Tokens a window.")
@click.option("--prompt", "prompts", multiple=True, help="Start of a greedy continuation; several times.")
@click.option("-t", "--threads", type=click.IntRange(1, 1024), help="Worker threads.")
@click.option("--allow-portable", is_flag=True, help="Accept the slow body where the native kernels are missing.")
@click.option(
    "--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the bundle runs."
)
@click.option("--trust-bundle-code", is_flag=True, help="Let machine code inside of a TensorRT engine run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    against: Path | None,
    record: bool,
    text: Path | None,
    windows: int,
    length: int,
    prompts: tuple[str, ...],
    threads: int | None,
    allow_portable: bool,
    provider: str,
    trust_bundle_code: bool,
    as_json: bool,
) -> None:
    """Prove that BUNDLE computes what PyTorch computed.

    Compares the outputs of layers and blocks, logits, greedy text and perplexity, and names the first layer that
    differs. Exit status: 0 when all passed, 1 when something failed or could not be proved, 2 for an error.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..validation import validate

    if against is not None and text is None and not as_json:
        click.echo("No --text: windows are sampled from the reference model itself.", err=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("opening", total=1.0)
        report = validate(
            bundle,
            against,
            record=record,
            text=text,
            windows=windows,
            window_length=length,
            prompts=prompts,
            threads=threads,
            allow_portable=allow_portable,
            provider=provider,
            trust_bundle_code=trust_bundle_code,
            progress=lambda done, what: bar.update(task, completed=done, description=what),
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        report.print()
    sys.exit(0 if report.passed else 1)
