# SPDX-License-Identifier: Apache-2.0
"""`nq-edge deploy`: a bundle becomes the folder that a board needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import printable
from .arguments import InputPath, OutputPath
from .paths import check_kind
from .progress import shown_progress
from .streams import echo_json

__all__ = ["command"]


@click.command(name="deploy")
@click.argument("bundle", type=InputPath())
@click.option("--device", "-d", required=True, help="The board: a name of `nq-edge devices`, or `this`.")
@click.option("--output", type=OutputPath(), required=True, help="The folder to write.")
@click.option(
    "--wheels/--no-wheels",
    default=True,
    help="Fetch the wheels now, so that the board needs no network. Without them the board fetches the same versions.",
)
@click.option("--native", type=InputPath(), help="A folder with libraries that were built for the board.")
@click.option("--no-native", is_flag=True, help="Leave building the operator's library to the board.")
@click.option("--python", help="The board's version of Python, such as 3.10 [default: that of its system].")
@click.option("--overwrite", is_flag=True, help="Replace a deployment that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(bundle: Path, device: str, *, output: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write all that a board needs to run BUNDLE into one folder.

    The bundle, this package and its requirements as wheels, the operator's library and its sources, setup.sh,
    build_engine.sh, run.sh, a systemd unit, a container recipe and a README. On the board: ./setup.sh, then ./run.sh.
    """
    from ..deploy import DeployOptions, deploy
    from .devices import named

    check_kind(bundle, "bundle", "engine", "build folder", code="NQ-BUNDLE")
    chosen = DeployOptions(
        wheels=options["wheels"],
        native=options["native"],
        build_native=not options["no_native"],
        python=options["python"],
    )
    with shown_progress("deploy", hidden=as_json) as progress:
        made = deploy(bundle, named(device), output=output, options=chosen, overwrite=overwrite, progress=progress)
    if as_json:
        echo_json({"folder": str(output), **made.to_dict()})
        return
    total = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file()) / 1e6
    network = "needs no network there" if made.complete else "fetches its requirements there"
    libraries = ", ".join(made.libraries) or "no prebuilt library"
    click.echo(
        printable(f"{output}: {total:.0f} MB for {made.target.title}, Python {made.python}, {libraries}; {network}")
    )
    steps = "./setup.sh, " + ("./build_engine.sh for the GPU, " if made.graph else "") + "./run.sh"
    click.echo(f"Copy the folder to the board and run {steps} there (README.md). Not run on a board by the project.")
    click.echo(f"The board must have {', '.join(made.needs)}.")
