# SPDX-License-Identifier: Apache-2.0
"""`nq-edge export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.graph import ACTIVATION_DTYPES, DIALECTS, ROWS_ONLY_DIALECTS
from .arguments import InputPath, OutputPath
from .engine_options import engine_options, make_engine
from .paths import check_kind
from .progress import shown_progress
from .streams import echo_json

if TYPE_CHECKING:
    from ..formats.bundle import Bundle

__all__ = ["command"]

#: Option -> the kinds of export that it goes with; all others are an engine's.
_KINDS = {
    "dtype": ("onnx", "tensorrt"),
    "dialect": ("onnx",),
    "portable": ("onnx",),
    "cache": ("onnx",),
    "max_length": ("onnx", "genai"),
    "embedding": ("onnx", "genai"),
    "custom_ops_library": ("genai",),
}


@click.command(name="export")
@click.argument("checkpoint", type=InputPath())
@click.option(
    "--to",
    "kind",
    type=click.Choice(["onnx", "genai", "tensorrt"]),
    help="Write a bundle for ONNX Runtime, a folder for ONNX Runtime GenAI, or a TensorRT engine "
    "[default: onnx, and tensorrt where a --target is named].",
)
@click.option("--output", type=OutputPath(), required=True, help="Bundle folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(ACTIVATION_DTYPES),
    help="Type of activations and cache: float32 for CPUs, 16 bits for GPUs [default: float32; tensorrt: float16].",
)
@click.option(
    "--dialect",
    type=click.Choice([name for name in DIALECTS if name not in ROWS_ONLY_DIALECTS]),
    help="ONNX Runtime's own operators, or standard ones of opset 24 [default: ort]; TensorRT's follows the target.",
)
@click.option(
    "--cache",
    type=click.Choice(["float32", "float16"]),
    help="Type of the key/value cache on CPUs: half the memory, and faster after long prompts [default: float32].",
)
@click.option("--portable", is_flag=True, help="Add a slow body of the operator for runtimes without our kernels.")
@click.option("--max-length", type=click.IntRange(min=1), help="Longest context in tokens [default: the model's own].")
@click.option(
    "--embedding",
    type=click.Choice(["int8", "int4", "fp16"]),
    help="Round a 16-bit embedding and head, or widen quantized ones [default: as the checkpoint stores them].",
)
@click.option(
    "--custom-ops-library",
    type=InputPath(),
    help="genai: libnanoquant_ort.so of the device's architecture [default: the one installed here].",
)
@engine_options
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(checkpoint: Path, kind: str | None, *, output: Path, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write a bundle that a device runs, from CHECKPOINT.

    CHECKPOINT is a folder that `nq-edge compress` wrote, or a bundle that `nq-edge export --to onnx` wrote.

    Options from --target to --workspace go with --to tensorrt, which --target implies; --max-length and --embedding
    with --to onnx and genai; --dialect, --cache and --portable with --to onnx; --custom-ops-library with --to genai.
    """
    kind = kind or ("tensorrt" if given["targets"] else "onnx")
    check_kind(checkpoint, "checkpoint", "bundle", code="NQ-CKPT")
    _check_options(kind, given)
    if kind == "tensorrt":
        engine = {name: value for name, value in given.items() if name not in _KINDS}
        make_engine(checkpoint, output, dtype=given["dtype"], overwrite=overwrite, as_json=as_json, **engine)
        return
    from ..errors import NqEdgeError

    try:
        from ..exporters.genai import export_genai
        from ..exporters.onnx import export_onnx
    except ModuleNotFoundError as error:
        from ..system.extras import install_command

        hint = f"Install them: {install_command('export')}."
        raise NqEdgeError("NQ-MISSING", f"export needs the package {error.name}.", hint) from error

    start = time.perf_counter()
    with shown_progress("export", hidden=as_json) as progress:
        progress(0.0, "reading the model")
        common: dict[str, Any] = {"overwrite": overwrite, "progress": progress.part(0.05, 1.0)}
        common |= {name: given[name] for name in ("max_length", "embedding")}
        if kind == "genai":
            bundle = export_genai(checkpoint, output, library=given["custom_ops_library"], **common)
        else:
            chosen = {name: given[name] for name in ("dtype", "dialect", "cache", "portable") if given[name]}
            bundle = export_onnx(checkpoint, output, **chosen, **common)
    seconds = time.perf_counter() - start
    if as_json:
        echo_json(_summary(bundle, seconds))
    else:
        _print_table(bundle, seconds)


def _check_options(kind: str, given: dict[str, object]) -> None:
    """Refuse options of another kind of export, rather than ignore them."""
    from ..errors import NqEdgeError

    for name, value in given.items():
        kinds = _KINDS.get(name, ("tensorrt",))
        if value and kind not in kinds:
            option = "--target" if name == "targets" else f"--{name.replace('_', '-')}"
            other = " or ".join(kinds)
            raise NqEdgeError("NQ-OPTION", f"{option} goes with --to {other}, not with --to {kind}.", "Leave it out.")


def _summary(bundle: Bundle, seconds: float) -> dict[str, object]:
    return {
        "bundle": str(bundle.folder),
        "backend": bundle.backend,
        "dialect": bundle.dialect,
        "dtype": bundle.dtype,
        "cache": bundle.kv.dtype,
        "portable": bundle.portable,
        "compressed_linears": bundle.compressed_linears,
        "true_bpw": bundle.true_bpw,
        "max_length": bundle.kv.capacity,
        "embedding": bundle.source_model["embedding"],
        "head": bundle.source_model["head"],
        "files": {name: entry.size for name, entry in bundle.files.items()},
        "total_bytes": sum(entry.size for entry in bundle.files.values()),
        "seconds": round(seconds, 3),
    }


def _print_table(bundle: Bundle, seconds: float) -> None:
    from rich.table import Table

    from ..system.terminal import plain, terminal

    table = Table(title=plain(bundle.folder), title_justify="left")
    table.add_column("file")
    table.add_column("MB", justify="right")
    for name, entry in bundle.files.items():
        table.add_row(plain(name), f"{entry.size / 1e6:.2f}")
    table.add_section()
    table.add_row("total", f"{sum(entry.size for entry in bundle.files.values()) / 1e6:.2f}")
    console = terminal()
    console.print(table)
    console.print(
        f"{bundle.compressed_linears} compressed layers at {bundle.true_bpw:.3f} bits per weight, "
        f"embedding {bundle.source_model['embedding']}, head {bundle.source_model['head']}, "
        f"dialect {bundle.dialect}, {bundle.dtype}, context {bundle.kv.capacity}, {seconds:.1f} s"
    )
