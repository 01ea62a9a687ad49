# SPDX-License-Identifier: Apache-2.0
"""`nq-edge inspect`: what a checkpoint or a bundle holds and where its bytes are, from headers alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .paths import check_kind
from .streams import echo_json

if TYPE_CHECKING:
    from rich.text import Text

    from ..formats.checkpoint import Checkpoint

__all__ = ["command", "describe_bundle", "describe_checkpoint"]


@click.command(name="inspect")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="List every compressed layer, not only each type.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path, layers: bool, as_json: bool) -> None:
    """Show a checkpoint's layers, ranks, true bits per weight and where its bytes are (or a bundle's contents)."""
    from ..formats.bundle import MANIFEST_FILE

    check_kind(folder, "checkpoint", "bundle", "engine", "build folder", code="NQ-CKPT")
    if (folder / MANIFEST_FILE).is_file():
        report = describe_bundle(folder)
    else:
        from ..formats.checkpoint import Checkpoint

        report = describe_checkpoint(Checkpoint(folder))
    if as_json:
        echo_json(report, indent=2)
    elif "layers" in report:
        _print_checkpoint(report, layers)
    else:
        _print_bundle(report)


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything the verb shows of a checkpoint.

    Returns:
        JSON-ready: `model`, `target_bpw`, `true_bpw` (as stored in the configuration), `measured_bpw` (counted from
        the files' headers), `layers` (name, type, shape, rank, bpw), `tables` (format, shape, bits an entry), `bytes`
        (category -> bytes), `total_bytes`, `recipe`, `calibration`.
    """
    layers: list[dict[str, Any]] = []
    packed_bytes = scale_bytes = 0
    inside: set[str] = set()
    for name in checkpoint.layers:
        parts = {
            part: f"{name}.{part}"
            for part in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid")
            if f"{name}.{part}" in checkpoint
        }
        inside.update(parts.values())
        sizes = {part: _tensor_bytes(checkpoint, tensor) for part, tensor in parts.items()}
        words = sizes["u_packed"] + sizes["v_packed"]
        scales = sum(sizes.values()) - words
        packed_bytes, scale_bytes = packed_bytes + words, scale_bytes + scales
        m, n = checkpoint.shape(f"{name}.scale_out")[0], checkpoint.shape(f"{name}.scale_in")[0]
        layers.append(
            {
                "name": name,
                "type": re.split(r"\.\d+\.", name)[-1],
                "out_features": m,
                "in_features": n,
                "rank": checkpoint.settings.ranks[name],
                "bpw": 8 * (words + scales) / (m * n),
            }
        )
    weights = sum(layer["out_features"] * layer["in_features"] for layer in layers)
    sizes = {"packed words": packed_bytes, "scales": scale_bytes, "embedding": 0, "head": 0, "norms": 0, "biases": 0}
    sizes.update({"other tensors": 0, "tokenizer": 0, "other files": 0})
    for tensor in checkpoint.tensor_names():
        if tensor not in inside:
            sizes[_category(tensor)] += _tensor_bytes(checkpoint, tensor)
    total = 0
    for path in sorted(checkpoint.folder.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            total += size
            if path.suffix != ".safetensors":
                tokenizer = "token" in path.name or path.name == "chat_template.jinja"
                sizes["tokenizer" if tokenizer else "other files"] += size
    sizes["other files"] += total - sum(sizes.values())  # headers of the weight files
    settings = checkpoint.settings
    return {
        "folder": str(checkpoint.folder),
        "model": _model(checkpoint.config),
        "target_bpw": settings.target_bpw,
        "true_bpw": settings.true_bpw,
        "measured_bpw": 8 * (packed_bytes + scale_bytes) / weights,
        "scale_dtype": settings.scale_dtype,
        "embedding": settings.embedding,
        "head": settings.head,
        "tables": {module: _describe_table(checkpoint, module) for module in settings.tables},
        "layers": layers,
        "bytes": sizes,
        "total_bytes": total,
        "recipe": settings.recipe,
        "calibration": settings.calibration,
    }


def describe_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, sizes checked, as a JSON-ready object."""
    from dataclasses import asdict

    from ..formats.bundle import Bundle

    bundle = Bundle.open(folder, verify=False)
    report = {**asdict(bundle), "folder": str(folder)}
    report["total_bytes"] = sum(entry.size for entry in bundle.files.values())
    return report


def _model(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("_name_or_path", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    return {key: config[key] for key in keys if key in config}


def _tensor_bytes(checkpoint: Checkpoint, name: str) -> int:
    kind = checkpoint.dtype(name)
    width = int("".join(character for character in kind if character.isdigit())[:2] or 8) // 8
    return math.prod(checkpoint.shape(name)) * width


def _describe_table(checkpoint: Checkpoint, module: str) -> dict[str, Any]:
    """Format, size and stored bits an entry (scales counted) of a quantized table."""
    table = checkpoint.table(module)
    assert table is not None
    stored = sum(_tensor_bytes(checkpoint, f"{module}.{part}") for part in ("codes", "scales"))
    rows, columns = table.shape
    return {"format": table.kind, "rows": rows, "columns": columns, "bits": 8 * stored / (rows * columns)}


def _category(tensor: str) -> str:
    if "embed" in tensor:
        return "embedding"
    if tensor.startswith("lm_head"):
        return "head"
    if "norm" in tensor:
        return "norms"
    return "biases" if tensor.endswith(".bias") else "other tensors"


def _print_checkpoint(report: dict[str, Any], every_layer: bool) -> None:
    from rich.table import Table

    from ..system.terminal import terminal

    console = terminal()
    model = ", ".join(f"{key.removeprefix('_')} {value}" for key, value in report["model"].items())
    console.print(_plain(f"{report['folder']}: {model}"))
    layers = Table(title="compressed layers")
    for column in ("layer", "out x in", "count", "rank", "bits per weight"):
        layers.add_column(column, justify="left" if column == "layer" else "right")
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for layer in report["layers"]:
        name = layer["name"] if every_layer else layer["type"]
        groups.setdefault((name, layer["out_features"], layer["in_features"]), []).append(layer)
    for (name, m, n), members in groups.items():
        ranks = [layer["rank"] for layer in members]
        rates = [layer["bpw"] for layer in members]
        layers.add_row(_plain(name), f"{m} x {n}", str(len(members)), _span(ranks, "d"), _span(rates, ".3f"))
    console.print(layers)
    sizes = Table(title="bytes")
    for column in ("part", "MB", "share"):
        sizes.add_column(column, justify="left" if column == "part" else "right")
    for part, size in report["bytes"].items():
        if size:
            sizes.add_row(part, f"{size / 1e6:.3f}", f"{100 * size / report['total_bytes']:.1f} %")
    sizes.add_row("whole folder", f"{report['total_bytes'] / 1e6:.3f}", "100.0 %")
    console.print(sizes)
    console.print(
        _plain(
            f"bits per weight: target {report['target_bpw']:.4g}, stored {report['measured_bpw']:.4f} "
            f"(scales {report['scale_dtype']}); embedding {report['embedding']}, head {report['head']}"
        )
    )
    for module, table in report["tables"].items():
        size = f"{table['rows']} x {table['columns']}"
        console.print(_plain(f"table {module}: {size}, {table['format']}, {table['bits']:.3f} bits an entry"))
    for entry in ("recipe", "calibration"):
        console.print(_plain(f"{entry}: {json.dumps(report[entry]) if report[entry] else 'not recorded'}"))


def _print_bundle(report: dict[str, Any]) -> None:
    from rich.table import Table

    from ..system.terminal import terminal

    console = terminal()
    kv, (low, high) = report["kv"], report["backend_versions"]
    text = (
        f"{report['folder']}: {report['source_model']}\n"
        f"{report['backend']} {low} to {high or 'any'}, dialect {report['dialect']}, {report['dtype']}, "
        f"operator version {report['operator_version']}, portable {report['portable']}\n"
        f"{report['compressed_linears']} compressed layers, target {report['target_bpw']:.4g} bpw, "
        f"stored {report['true_bpw']:.4f} bpw\n"
        f"cache: {kv['layers']} layers x {kv['heads']} heads x {kv['head_dim']}, {kv['dtype']}, "
        f"up to {kv['capacity']} tokens"
    )
    console.print(_plain(text))
    table = Table(title="files")
    for column in ("file", "MB", "SHA-256"):
        table.add_column(column)
    for name, entry in report["files"].items():
        table.add_row(_plain(name), f"{entry['size'] / 1e6:.3f}", _plain(entry["sha256"][:16]))
    table.add_row("whole bundle", f"{report['total_bytes'] / 1e6:.3f}", "")
    console.print(table)


def _plain(text: str) -> Text:
    """A stranger's text for the terminal: no markup, no control sequences."""
    from rich.text import Text

    return Text("".join(character if character.isprintable() or character == "\n" else "?" for character in text))


def _span(values: list[Any], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
