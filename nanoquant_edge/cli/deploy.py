# SPDX-License-Identifier: Apache-2.0
"""`nq-edge deploy`: a bundle becomes the folder that a board needs."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import printable
from .arguments import OutputPath
from .streams import echo_json

__all__ = ["command"]


@click.command(name="deploy")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", "-d", required=True, help="A board of `nq-edge devices`, x86-laptop, or `this`.")
@click.option("--output", type=OutputPath(), required=True, help="Folder to write.")
@click.option("--wheels/--no-wheels", default=True, help="Fetch wheels now, so that the board needs no network.")
@click.option("--native", type=click.Path(path_type=Path), help="Folder with libraries built for the board.")
@click.option("--no-native", is_flag=True, help="Leave building the operator's library to the board.")
@click.option("--python", help="The board's Python, such as 3.10 [default: of its system].")
@click.option("--overwrite", is_flag=True, help="Replace a deployment that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    device: str,
    output: Path,
    wheels: bool,
    native: Path | None,
    no_native: bool,
    python: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write all that a board needs to run BUNDLE into one folder.

    The bundle, this package and its requirements as wheels, the operator's library and its sources, setup.sh,
    build_engine.sh, run.sh, a systemd unit, a container recipe and a README. On the board: ./setup.sh, then ./run.sh.
    """
    import re

    from ..deploy import deploy
    from ..errors import NqEdgeError
    from .devices import named

    if python is not None and not re.fullmatch(r"3\.1[0-9]", python):
        raise NqEdgeError(
            "NQ-OPTION", f"--python {python[:20]!r} is not a Python from 3.10 on.", "Such as 3.10 or 3.12."
        )
    if native is not None and no_native:
        raise NqEdgeError("NQ-OPTION", "--native and --no-native exclude each other.", "Pass one of them.")
    made = deploy(
        bundle,
        named(device),
        output,
        wheels=wheels,
        native=native,
        build_native=not no_native,
        python=python,
        overwrite=overwrite,
        progress=lambda what: None if as_json else click.echo(f"{what} ...", err=True),
    )
    if as_json:
        echo_json({"folder": str(output), **made.to_dict()})
        return
    total = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file()) / 1e6
    network = "needs no network there" if made.complete else "fetches its requirements there"
    libraries = ", ".join(made.libraries) or "no prebuilt library"
    what = f"{output}: {total:.0f} MB for {made.target.title}, Python {made.python}, {libraries}; {network}"
    click.echo(printable(what))
    steps = "./setup.sh, " + ("./build_engine.sh for the GPU, " if made.graph else "") + "./run.sh"
    click.echo(
        f"Copy the folder to the board and run {steps} there (README.md). Not run on such a board by the project."
    )
