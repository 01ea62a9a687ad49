# SPDX-License-Identifier: Apache-2.0
"""Writing a checkpoint folder in one piece: under a temporary name, flushed, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ...system.files import new_folder, write_json
from .layer import PackedLayer
from .reader import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from .settings import QuantizationSettings
from .table import QuantizedTable

__all__ = ["COMPANION_FILES", "true_bits_per_weight", "write_checkpoint"]

#: Files that travel with a model unchanged.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

SHARD_BYTES = 5_000_000_000


def true_bits_per_weight(layers: Iterable[PackedLayer]) -> float:
    """Stored bits (words, padding, scales) over the number of weights they stand for (paper Eq. 58 per layer)."""
    bits = weights = 0
    for layer in layers:
        bits += layer.stored_bits
        weights += layer.in_features * layer.out_features
    return bits / weights


def _shards(tensors: dict[str, NDArray[np.generic]], limit: int) -> list[dict[str, NDArray[np.generic]]]:
    shards: list[dict[str, NDArray[np.generic]]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    return shards


def write_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    settings: QuantizationSettings,
    layers: Mapping[str, PackedLayer],
    others: Mapping[str, NDArray[np.generic]],
    companions: str | Path | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    tables: Mapping[str, QuantizedTable] | None = None,
) -> Checkpoint:
    """Write a checkpoint and open it again, which checks it.

    Args:
        folder: where to; it appears only when everything in it is complete and on disk.
        config: the model's config.json content; its `quantization_config` is replaced.
        settings: the new `quantization_config`; its `shards` and `tables` are set to what is written.
        layers: module name -> factors, for every compressed layer.
        others: tensor name -> array, for everything else (embedding, norms, untied head).
        companions: folder from which tokenizer and generation files are copied, when present there.
        overwrite: replace a checkpoint that stands there.
        shard_bytes: largest size of one weights file.
        tables: module name -> codes and scales; they take the place of `{module}.weight` in `others`.

    Raises:
        NqEdgeError: NQ-OUTPUT when the folder exists or cannot be written.
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, layer in layers.items():
        for part in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias"):
            value = getattr(layer, part)
            if value is not None:
                tensors[f"{name}.{part}"] = np.ascontiguousarray(value)
    coded = dict(tables or {})
    for name, table in coded.items():
        tensors[f"{name}.codes"] = np.ascontiguousarray(table.codes)
        tensors[f"{name}.scales"] = np.ascontiguousarray(table.scales)
    replaced = {f"{name}.weight" for name in coded}
    tensors.update({name: np.ascontiguousarray(value) for name, value in others.items() if name not in replaced})
    with new_folder(Path(folder), overwrite) as scratch:
        metadata = {"format": "np"}  # a second entry would come out in random order, and equal runs in unequal bytes
        shards = _shards(tensors, shard_bytes)
        if len(shards) == 1:
            save_file(shards[0], scratch / WEIGHTS_FILE, metadata)
        else:
            weight_map = {}
            for number, shard in enumerate(shards, 1):
                name = f"nanoquant-{number:05d}-of-{len(shards):05d}.safetensors"
                save_file(shard, scratch / name, metadata)
                weight_map.update(dict.fromkeys(shard, name))
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(scratch / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        entry = replace(
            settings, shards=len(shards), tables={name: table.kind for name, table in coded.items()}
        ).to_dict()
        write_json(scratch / "config.json", {**config, "quantization_config": entry})
        if companions is not None:
            for name in COMPANION_FILES:
                if (Path(companions) / name).is_file():
                    shutil.copyfile(Path(companions) / name, scratch / name)
    return Checkpoint(folder)
