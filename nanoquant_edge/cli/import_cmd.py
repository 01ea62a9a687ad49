# SPDX-License-Identifier: Apache-2.0
"""`nq-edge import`: a checkpoint of another NanoQuant implementation becomes one of ours."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import printable
from .arguments import InputPath, OutputPath
from .paths import check_kind
from .progress import shown_progress
from .streams import echo_json

__all__ = ["command"]


@click.command("import")
@click.argument("source", type=InputPath())
@click.option("--base", required=True, help="The dense model it was made from: folder, .gguf file or hub id.")
@click.option("--output", type=OutputPath(), required=True, help="Checkpoint folder to write.")
@click.option("--allow-pickle", is_flag=True, help="Read --base from pytorch_model.bin, tensors only, running no code.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a line.")
def command(source: Path, base: str, *, output: Path, allow_pickle: bool, overwrite: bool, as_json: bool) -> None:
    """Import SOURCE, packed factors of the official code or of arelath/NanoQuant (.pt, safetensors or GGUF).

    Words and scales are taken over bit by bit; what SOURCE lacks (tokenizer, embedding, norms) comes from --base.
    """
    from ..errors import NqEdgeError

    check_kind(source, "official", "gguf", "model", code="NQ-CKPT")
    check_kind(base, "model", "gguf", code="NQ-MODEL")
    try:
        from ..importers.conversion import import_checkpoint

        with shown_progress("import", hidden=as_json) as progress:
            checkpoint = import_checkpoint(
                source, base, output=output, overwrite=overwrite, allow_pickle=allow_pickle, progress=progress
            )
    except ModuleNotFoundError as error:
        from ..system.extras import install_command

        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", f"import needs the package {error.name}.", hint) from error
    report = {
        "checkpoint": str(checkpoint.folder),
        "layers": len(checkpoint.layers),
        "true_bpw": checkpoint.settings.true_bpw,
        "scale_dtype": checkpoint.settings.scale_dtype,
        "total_bytes": sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file()),
    }
    if as_json:
        echo_json(report)
    else:
        rate = checkpoint.settings.true_bpw
        click.echo(printable(f"{report['checkpoint']}: {report['layers']} layers at {rate:.4f} bits per weight"))
