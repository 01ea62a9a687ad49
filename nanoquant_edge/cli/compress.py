# SPDX-License-Identifier: Apache-2.0
"""`nq-edge compress`: a model becomes a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .arguments import InputPath, OutputPath
from .paths import check_kind
from .progress import shown_progress
from .rate_hint import rate_hint
from .streams import echo_json

if TYPE_CHECKING:
    from ..formats.checkpoint import Checkpoint

__all__ = ["command"]


@click.command("compress")
@click.argument("model", type=InputPath())
@click.option("--bpw", type=float, help="Bits per weight of the compressed layers [default: 1.0].")
@click.option("--output", type=OutputPath(), required=True, help="Checkpoint folder to write.")
@click.option(
    "--recipe",
    "--preset",
    "recipe",
    type=click.Choice(["quick", "balanced", "full", "max", "official"]),
    default="balanced",
    show_default=True,
    help="quick: minutes on a CPU, for trying; balanced: minutes on a GPU; full: the same with 16 times the steps, the "
    "paper's schedule; max: full, and then all scales tuned from end to end on 3 million tokens; official: as the "
    "official code.",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="PATH[=WEIGHT]",
    help="Text like what the model will see: a file, or a folder of .txt, .raw, .md and .jsonl files, also with .xz or "
    ".zst; self:2M is up to 2 million tokens that the model writes itself. May be repeated, with weights "
    "[default: self, as much as is needed].",
)
@click.option(
    "--chat-share",
    type=click.FloatRange(0, 1),
    help="Share of the calibration windows that hold conversations which the model writes in its own chat format "
    "[default: the preset's, half for a model that has one, none in official].",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Random seed for the calibration windows, the initial factors and the order of samples.",
)
@click.option("--device", default="auto", show_default=True, help="Where to compute: auto, cpu, cuda or cuda:N.")
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Number type of matrix products while tuning; auto takes bfloat16 where the processor multiplies it natively.",
)
@click.option(
    "--scale-dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Number type in which the scale vectors are stored.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Read pytorch_model.bin where MODEL has no safetensors; no code runs."
)
@click.option(
    "--embedding",
    type=click.Choice(["fp16", "int8", "int4"]),
    default="fp16",
    show_default=True,
    help="Number type in which embedding and head are stored; int8 and int4 are calibrated.",
)
@click.option(
    "--stream-weights/--no-stream-weights",
    default=None,
    help="Read each block's weights from the safetensors files when they are needed [default: where the float32 model "
    "would take more than half of the free memory].",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a checkpoint that stands at --output, and the state of an interrupted run.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run for the same --output.")
@click.option("--report", type=OutputPath(), help="Write a page with the blocks' errors, time and rates, .html or .md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(model: Path, *, output: Path, report: Path | None, as_json: bool, **options: Any) -> None:
    """Compress MODEL (a Hugging Face folder, a .gguf file or a hub id) to about BPW bits per weight."""
    from ..errors import NqEdgeError

    check_kind(model, "model", "gguf", code="NQ-MODEL")
    if output.exists() and not options["overwrite"]:
        raise NqEdgeError("NQ-OUTPUT", f"{output} exists already.")
    if report is not None:
        from ..reports.page import check_report_path

        check_report_path(report)
    try:
        from ..compression import CompressOptions, Recipe, compress
        from ..compression.execution.device import chosen_device
    except ModuleNotFoundError as error:
        from ..system.extras import install_command

        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", f"compress needs the package {error.name}.", hint) from error

    share, calibration, bpw = options.pop("chat_share"), options.pop("calibration"), options.pop("bpw")
    if share is not None:
        options["recipe"] = Recipe.preset(options["recipe"], chat_share=share)
    rate = CompressOptions.bpw if bpw is None else bpw
    chosen = CompressOptions(**options, bpw=rate, calibration=calibration or None)
    first = os.environ.get("RANK", "0") == "0"  # of several processes that torchrun started, the first one reports
    if first and chosen.schedule.name != "quick" and chosen_device(chosen.device).type == "cpu":
        hours = f"{chosen.schedule.name} takes hours on a CPU, even for a small model; --preset quick takes minutes."
        click.echo(hours, err=True)
    if first and (words := rate_hint(model, bpw, rate)):
        click.echo(words, err=True)
    with shown_progress("compress", hidden=as_json or not first) as progress:
        checkpoint = compress(model, output, chosen, progress=progress)
    if not first:
        return
    if report is not None:
        from ..reports.compression import compression_page
        from ..reports.page import save_page

        save_page(compression_page(checkpoint), report)
    summary = summarize(checkpoint)
    if as_json:
        echo_json(summary)
        return
    _print(summary)
    _plot(checkpoint.settings.recipe["block_errors"])


def summarize(checkpoint: Checkpoint) -> dict[str, Any]:
    """The closing figures of a compression, from its checkpoint."""
    settings = checkpoint.settings
    size = sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file())
    return {
        "checkpoint": str(checkpoint.folder),
        "target_bpw": settings.target_bpw,
        "true_bpw": settings.true_bpw,
        "layers": len(settings.ranks),
        "embedding": settings.embedding,
        "head": settings.head,
        "total_bytes": size,
        "seconds": settings.recipe["seconds"],
        "peak_mb": settings.recipe["peak_mb"],
        "mean_factorization_error": sum(settings.recipe["block_errors"]) / len(settings.recipe["block_errors"]),
        "kd_loss": settings.recipe["kd_loss"],
        "undone": settings.recipe["undone"],
        "left_out": settings.recipe.get("left_out", []),
        "streamed": settings.recipe.get("streamed", False),
        "preset": settings.recipe["name"],
        "calibration": settings.calibration["text"],
    }


def _print(summary: dict[str, Any]) -> None:
    from rich.table import Table

    from ..system.terminal import plain, terminal

    table = Table(title=plain(summary["checkpoint"]), title_justify="left", show_header=False)
    table.add_row("bits per weight", f"{summary['true_bpw']:.4f} stored (asked for {summary['target_bpw']})")
    table.add_row("compressed layers", str(summary["layers"]))
    table.add_row("embedding, head", f"{summary['embedding']}, {summary['head']}")
    table.add_row("size of the folder", f"{summary['total_bytes'] / 1e6:.2f} MB")
    table.add_row("factorization error", f"{summary['mean_factorization_error']:.3f} (weighted, mean over layers)")
    if summary["kd_loss"]:
        table.add_row("KL to the dense model", " to ".join(f"{loss:.3f}" for loss in summary["kd_loss"]) + " nats")
    table.add_row("time, peak memory", f"{summary['seconds']:.0f} s, {summary['peak_mb']:.0f} MB")
    table.add_row("weights", "read block by block" if summary["streamed"] else "in memory")
    table.add_row("preset, calibration", f"{summary['preset']}, {summary['calibration']}")
    for part in summary["left_out"]:
        table.add_row("left out", part)
    for stage in summary["undone"]:
        table.add_row("reverted", f"{stage}: its loss was not finite")
    terminal().print(table)


def _plot(errors: list[float]) -> None:
    """The errors of the blocks as bars, on a terminal; a file or a pipe has the table alone."""
    from rich.bar import Bar
    from rich.table import Table

    from ..system.terminal import terminal

    console, most = terminal(), max(errors, default=0.0)
    if not console.is_terminal or not most > 0:
        return
    table = Table.grid(padding=(0, 1))
    for block, error in enumerate(errors):
        table.add_row(f"block {block}", f"{error:.3f}", Bar(most, 0, error, width=max(10, console.width - 24)))
    console.print("factorization error of each block", style="bold")
    console.print(table)
