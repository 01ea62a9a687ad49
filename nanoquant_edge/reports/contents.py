# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint or a bundle holds and where its bytes are, from headers alone, JSON-ready."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..formats.bundle import Bundle
from ..formats.checkpoint import Checkpoint

__all__ = ["describe_bundle", "describe_checkpoint"]


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that `nq-edge inspect` shows of a checkpoint.

    Returns:
        JSON-ready: `name`, `model`, `target_bpw`, `true_bpw` (as stored in the configuration), `measured_bpw` (counted
        from the files' headers), `layers` (name, type, shape, rank, bpw), `tables` (format, shape, bits an entry),
        `bytes` (category -> bytes), `total_bytes`, `recipe`, `calibration`.
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
        "name": checkpoint.name,
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
    bundle = Bundle.open(folder, verify=False)
    report = {**asdict(bundle), "folder": str(folder), "kv": bundle.kv.to_manifest()}
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
    stored_bytes = sum(_tensor_bytes(checkpoint, f"{module}.{part}") for part in ("codes", "scales"))
    rows, columns = table.shape
    return {"format": table.kind, "rows": rows, "columns": columns, "bits": 8 * stored_bytes / (rows * columns)}


def _category(tensor: str) -> str:
    if "embed" in tensor:
        return "embedding"
    if tensor.startswith("lm_head"):
        return "head"
    if "norm" in tensor:
        return "norms"
    return "biases" if tensor.endswith(".bias") else "other tensors"
