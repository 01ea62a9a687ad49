# SPDX-License-Identifier: Apache-2.0
"""The page of `nq-edge inspect --html`: ranks and bits over depth, and where the bytes are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..system.units import bits_text, size_text
from .page import Figure, Page, Paragraph, Part, Section, Table
from .plots import Bars, Curve, bar_plot, curve_plot, missing
from .versions import footer

__all__ = ["bytes_parts", "depth_parts", "inspection_page"]

_BLOCK = re.compile(r"\.(\d+)\.")
#: Curves of one picture; a block has seven layers, so they share three pictures.
_CURVES = 3


def inspection_page(report: dict[str, Any]) -> Page:
    """A page of what `describe_checkpoint` or `describe_bundle` found.

    Args:
        report: the result of one of them.

    Example:
        >>> from nanoquant_edge.formats.checkpoint import Checkpoint
        >>> from nanoquant_edge.reports.contents import describe_checkpoint
        >>> inspection_page(describe_checkpoint(Checkpoint("checkpoint"))).state
        ''
    """
    if "layers" not in report:
        return _bundle_page(report)
    total = report["total_bytes"]
    layers = report["layers"]
    weights = sum(layer["out_features"] * layer["in_features"] for layer in layers)
    verdict = (
        f"{weights / 1e6:.1f} million weights in {len(layers)} layers are stored at {report['measured_bpw']:.3f} bits "
        f"per weight; the whole folder has {size_text(total)}."
    )
    facts = [
        ("asked for", bits_text(report["target_bpw"])),
        ("scales", str(report["scale_dtype"])),
        ("embedding, head", f"{report['embedding']}, {report['head']}"),
        ("recipe", str(report["recipe"].get("name", "not recorded"))),
        ("calibration", str(report["calibration"].get("text", "not recorded"))),
    ]
    sections = [
        Section("What it is", [Table(("fact", ""), facts)]),
        Section("Ranks and bits over depth", depth_parts(layers)),
        Section("Where the bytes are", bytes_parts(report["bytes"])),
    ]
    return Page(f"{report['name']}: a compressed checkpoint", verdict, "", sections, footer())


def _bundle_page(report: dict[str, Any]) -> Page:
    model, kv = report["source_model"], report["kv"]
    sizes = {name: entry["size"] for name, entry in report["files"].items()}
    facts = [
        ("runs with", str(report["backend"])),
        ("compressed layers", str(report["compressed_linears"])),
        ("asked for", bits_text(report["target_bpw"])),
        ("activations", str(report["dtype"])),
        ("context", f"{kv['max_capacity']} tokens"),
    ]
    hashes = [(name, size_text(entry["size"]), entry["sha256"]) for name, entry in report["files"].items()]
    sections = [
        Section("What it is", [Table(("fact", ""), facts)]),
        Section("Where the bytes are", bytes_parts(sizes)),
        Section("Files", [Table(("file", "size", "SHA-256"), hashes)]),
    ]
    verdict = f"Stored at {report['true_bpw']:.3f} bits per weight; all files have {size_text(report['total_bytes'])}."
    return Page(f"{model.get('name', 'A model')}: a bundle", verdict, "", sections, footer())


def depth_parts(layers: Sequence[dict[str, Any]]) -> list[Part]:
    """Rates and ranks of a checkpoint's layers over the blocks of the model.

    Args:
        layers: `layers` of `describe_checkpoint`, with name, type, rank, bpw and both sizes.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        kinds.setdefault(layer["type"], []).append(layer)
    parts: list[Part] = []
    names = list(kinds)
    for key, title in (("bpw", "bits per weight"), ("rank", "rank")):
        for start in range(0, len(names), _CURVES):
            chosen = names[start : start + _CURVES]
            curves = [
                Curve(name, [_block(row) for row in kinds[name]], [row[key] for row in kinds[name]]) for name in chosen
            ]
            svg = curve_plot(curves, x_title="block", y_title=title)
            if svg:
                parts.append(Figure(svg, f"{title.capitalize()} of {', '.join(chosen)} over the blocks."))
    if missing():
        parts.append(Paragraph(missing()))
    rows = []
    for name, members in kinds.items():
        weights = sum(row["out_features"] * row["in_features"] for row in members)
        bits = sum(row["bpw"] * row["out_features"] * row["in_features"] for row in members)
        ranks = [row["rank"] for row in members]
        shape = f"{members[0]['out_features']} x {members[0]['in_features']}"
        rows.append((name, shape, str(len(members)), f"{min(ranks)} to {max(ranks)}", f"{bits / weights:.3f}"))
    parts.append(Table(("layer", "out x in", "count", "rank", "bits per weight"), rows))
    return parts


def bytes_parts(sizes: dict[str, int]) -> list[Part]:
    """Bytes by part, largest first."""
    ordered = sorted(((name, size) for name, size in sizes.items() if size > 0), key=lambda item: -item[1])
    total = sum(size for _, size in ordered)
    parts: list[Part] = []
    svg = bar_plot([name for name, _ in ordered], [Bars("MB", [size / 1e6 for _, size in ordered])], x_title="MB")
    if svg:
        parts.append(Figure(svg, "Megabytes of each part."))
    rows = [(name, size_text(size), f"{100 * size / total:.1f} %") for name, size in ordered]
    parts.append(Table(("part", "size", "share"), [*rows, ("together", size_text(total), "")]))
    return parts


def _block(layer: dict[str, Any]) -> int:
    found = _BLOCK.search(layer["name"])
    return int(found[1]) if found else 0
