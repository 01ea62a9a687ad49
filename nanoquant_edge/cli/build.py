# SPDX-License-Identifier: Apache-2.0
"""`nq-edge build`: a bundle or a checkpoint becomes a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import InputPath, OutputPath
from .engine_options import engine_options, make_engine
from .paths import check_kind

__all__ = ["command"]


@click.command(name="build")
@click.argument("source", metavar="BUNDLE", type=InputPath())
@click.option("--output", type=OutputPath(), required=True, help="Bundle folder to write.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16"]), help="Type of activations and cache [default: float16]."
)
@engine_options
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(source: Path, output: Path, *, dtype: str | None, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Build a TensorRT engine for a GPU or a board.

    BUNDLE is what `nq-edge export --to onnx` wrote, a checkpoint, or a board's build folder. Engines for GeForce RTX
    GPUs are built on any machine, without a GPU. For a Jetson, a folder is written that the board builds from.
    """
    check_kind(source, "bundle", "checkpoint", "build folder", code="NQ-BUNDLE")
    make_engine(source, output, dtype=dtype, overwrite=overwrite, as_json=as_json, **given)
