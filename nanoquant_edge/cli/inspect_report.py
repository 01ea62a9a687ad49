# SPDX-License-Identifier: Apache-2.0
"""What `nq-edge inspect` prints: what it is and how large, then how it came about, then where the bytes are."""

from __future__ import annotations

import shlex
from typing import Any

from ..errors import printable
from ..formats.backends import BACKEND_TITLES, BOARD_BUILD, ENGINE_BACKENDS
from ..system.terminal import plain, terminal
from ..system.units import bits_text, size_text
from .layout import facts, figures

__all__ = ["print_bundle", "print_checkpoint"]

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


def print_checkpoint(report: dict[str, Any], every_layer: bool) -> None:
    """Print what `describe_checkpoint` found.

    Args:
        report: its result.
        every_layer: a row for each compressed layer, not only for each type.
    """
    console, sizes = terminal(), report["bytes"]
    folder, total = report["folder"], report["total_bytes"]
    kind = report["model"].get("model_type", "unknown family")
    rate = f"{report['measured_bpw']:.3f}"
    what = f"{report['name']} ({kind}) compressed to {rate} bits per weight, {size_text(total)}"
    console.print(plain(what, style="bold"))
    console.print(plain(f"A NanoQuant checkpoint: {folder}"))
    console.print()
    layers, packed = report["layers"], sizes["packed words"] + sizes["scales"]
    weights = sum(layer["out_features"] * layer["in_features"] for layer in layers)
    blocks = report["model"].get("num_hidden_layers")
    console.print(
        facts(
            (
                ("compressed", f"{weights / 1e6:.1f} million weights in {len(layers)} layers, {size_text(packed)}"),
                ("asked for", f"{bits_text(report['target_bpw'])}; scales in {report['scale_dtype']}"),
                ("blocks", f"{blocks} of width {report['model'].get('hidden_size')}" if blocks else ""),
                ("embedding, head", f"{report['embedding']}, {report['head']}"),
                *(("", _table(module, table)) for module, table in report["tables"].items()),
                ("made from", _source(report["recipe"])),
                ("recipe", _recipe(report["recipe"])),
                ("calibration", _calibration(report["calibration"])),
                ("next step", f"nq-edge export {shlex.quote(printable(str(folder)))} --output bundle"),
            )
        )
    )
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for layer in layers:
        name = layer["name"] if every_layer else layer["type"]
        groups.setdefault((name, layer["out_features"], layer["in_features"]), []).append(layer)
    rows = [
        (
            name,
            f"{m} x {n}",
            str(len(members)),
            _span([layer["rank"] for layer in members], "d"),
            _span([layer["bpw"] for layer in members], ".3f"),
        )
        for (name, m, n), members in groups.items()
    ]
    console.print(figures(("layer", "out x in", "count", "rank", "bits per weight"), rows))
    parts = [(part, f"{size / 1e6:.3f}", f"{100 * size / total:.1f} %") for part, size in sizes.items() if size]
    console.print(figures(("part", "MB", "share"), [*parts, ("whole folder", f"{total / 1e6:.3f}", "100.0 %")]))


def print_bundle(report: dict[str, Any]) -> None:
    """Print what `describe_bundle` found."""
    console, kv, model = terminal(), report["kv"], report["source_model"]
    folder, total = shlex.quote(printable(str(report["folder"]))), report["total_bytes"]
    name, kind = model.get("name", "A model"), model.get("model_type", "unknown family")
    rate = f"{report['true_bpw']:.3f}"
    console.print(plain(f"{name} ({kind}) at {rate} bits per weight, {size_text(total)}", style="bold"))
    console.print(plain(f"{_backend(report)}: {report['folder']}"))
    console.print()
    cache = 2 * kv["layers"] * kv["heads"] * kv["head_dim"] * kv["max_capacity"] * _WIDTHS.get(kv["dtype"], 4)
    shape = f"{kv['layers']} layers x {kv['heads']} heads x {kv['head_dim']}, {kv['dtype']}"
    tables = [str(model[part]) for part in ("embedding", "head") if part in model]
    body = (
        "a slow body in standard operators is in the file"
        if report["portable"]
        else "on the native library of this package only"
    )
    board = report["backend"] == BOARD_BUILD
    console.print(
        facts(
            (
                ("compressed", f"{report['compressed_linears']} compressed layers in the operator's version "
                 f"{report['operator_version']}"),
                ("asked for", bits_text(report["target_bpw"])),
                ("embedding, head", ", ".join(tables)),
                ("activations", f"{report['dtype']}, graph in dialect {report['dialect']}"),
                ("context", f"up to {kv['max_capacity']} tokens"),
                ("cache", f"{shape}: {size_text(cache)} when full"),
                ("runs", body if not (board or report["engine"]) else ""),
                ("engine", _engine(report["engine"])),
                ("next step", f"nq-edge build {folder} on the device" if board
                 else f"nq-edge generate {folder} --prompt \"Hello\""),
            )
        )
    )  # fmt: skip
    rows = [(name, f"{entry['size'] / 1e6:.3f}", entry["sha256"][:16]) for name, entry in report["files"].items()]
    console.print(figures(("file", "MB", "SHA-256"), [*rows, ("whole bundle", f"{total / 1e6:.3f}", "")]))


def _backend(report: dict[str, Any]) -> str:
    if report["backend"] == BOARD_BUILD:
        return "A folder from which a board builds its engine"
    if report["backend"] in ENGINE_BACKENDS:
        return f"A bundle with an engine for {ENGINE_BACKENDS[report['backend']].title}"
    low, high = report["backend_versions"]
    until = f" to {high}" if high else " or newer"
    return f"A bundle for {BACKEND_TITLES.get(report['backend'], report['backend'])} {low}{until}"


def _engine(engine: dict[str, Any] | None) -> str:
    if engine is None:
        return ""
    capabilities = ", ".join(engine["compute_capabilities"]) or "every GPU of its kind"
    return (
        f"built by {engine['tensorrt_version']} for compute capability {capabilities}, "
        f"{engine['plugin_layers']} plugin layers" + (", machine code inside" if engine["plugin"]["embedded"] else "")
    )


def _table(module: str, table: dict[str, Any]) -> str:
    return f"{module}: {table['rows']} x {table['columns']}, {table['format']}, {table['bits']:.3f} bits an entry"


def _source(recipe: dict[str, Any]) -> str:
    parts = [str(recipe[name]) for name in ("source", "source_note", "imported_from") if recipe.get(name)]
    return ", ".join(parts)


def _recipe(recipe: dict[str, Any]) -> str:
    """The settings that matter to a reader; --json has them all."""
    if not recipe:
        return "not recorded"
    parts = [str(recipe.get("name", "unnamed"))]
    if "seed" in recipe:
        parts.append(f"seed {recipe['seed']}")
    if "device" in recipe:
        parts.append(f"on {recipe['device']} in {recipe.get('compute_dtype', 'float32')}")
    if isinstance(recipe.get("seconds"), int | float):
        parts.append(f"{recipe['seconds']:.0f} s")
    losses = recipe.get("kd_loss")
    if isinstance(losses, list) and len(losses) == 2 and all(isinstance(loss, int | float) for loss in losses):
        parts.append(f"KL to the dense model from {losses[0]:.3f} to {losses[1]:.3f} nats")
    return ", ".join(parts)


def _calibration(calibration: dict[str, Any]) -> str:
    if not calibration:
        return "not recorded"
    text = str(calibration.get("text", "unknown text"))
    if "windows" in calibration and "window_length" in calibration:
        text += f": {calibration['windows']} windows of {calibration['window_length']} tokens"
    if calibration.get("conversations"):
        text += f", {calibration['conversations']} of them conversations that the model wrote"
    return text


def _span(values: list[Any], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
