# SPDX-License-Identifier: Apache-2.0
"""Writing a checkpoint folder in one piece: under a temporary name, flushed, then renamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ...system.files import new_folder, usual_mode, write_json
from ..companions import copy_companions
from .layer import PackedLayer
from .reader import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from .settings import QuantizationSettings
from .table import QuantizedTable

__all__ = ["CheckpointParts", "true_bits_per_weight", "write_checkpoint"]

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


def _save(tensors: dict[str, NDArray[np.generic]], path: Path) -> None:
    # A second entry of metadata would come out in random order, and equal runs in unequal bytes.
    save_file(tensors, path, {"format": "np"})
    usual_mode(path)  # safetensors makes files that nobody else may read


@dataclass(frozen=True)
class CheckpointParts:
    """What a checkpoint consists of.

    Attributes:
        config: the model's config.json content; its `quantization_config` is replaced.
        settings: the new `quantization_config`; its `shards` and `tables` are set to what is written.
        layers: module name -> factors, for every compressed layer.
        others: tensor name -> array, for everything else (embedding, norms, untied head).
        tables: module name -> codes and scales; they take the place of `{module}.weight` in `others`.
    """

    config: Mapping[str, Any]
    settings: QuantizationSettings
    layers: Mapping[str, PackedLayer]
    others: Mapping[str, NDArray[np.generic]]
    tables: Mapping[str, QuantizedTable] = field(default_factory=dict)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """Every tensor under the name that it has in the file."""
        tensors: dict[str, NDArray[np.generic]] = {}
        for name, layer in self.layers.items():
            for part in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias"):
                value = getattr(layer, part)
                if value is not None:
                    tensors[f"{name}.{part}"] = np.ascontiguousarray(value)
        for name, table in self.tables.items():
            tensors[f"{name}.codes"] = np.ascontiguousarray(table.codes)
            tensors[f"{name}.scales"] = np.ascontiguousarray(table.scales)
        replaced = {f"{name}.weight" for name in self.tables}
        tensors.update({n: np.ascontiguousarray(value) for n, value in self.others.items() if n not in replaced})
        return tensors


def write_checkpoint(
    folder: str | Path,
    parts: CheckpointParts,
    *,
    companions: str | Path | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """Write a checkpoint and open it again, which checks it.

    Args:
        folder: where to; it appears only when everything in it is complete and on disk.
        parts: what is written.
        companions: folder from which tokenizer and generation files are copied, when present there.
        overwrite: replace a checkpoint that stands there.
        shard_bytes: largest size of one weights file.

    Raises:
        NqEdgeError: NQ-OUTPUT when the folder exists or cannot be written.

    Example:
        >>> made = Checkpoint("checkpoint")
        >>> layers = {name: made.layer(name) for name in made.layers}
        >>> parts = {name for layer in layers for name in made.tensor_names() if name.startswith(f"{layer}.")}
        >>> others = {name: made.tensor(name) for name in made.tensor_names() if name not in parts}
        >>> copy = CheckpointParts(made.config, made.settings, layers, others)
        >>> write_checkpoint("copy", copy, companions="checkpoint").layers[0]
        'model.layers.0.self_attn.q_proj'
    """
    tensors = parts.tensors()
    with new_folder(Path(folder), overwrite) as scratch:
        shards = _shards(tensors, shard_bytes)
        if len(shards) == 1:
            _save(shards[0], scratch / WEIGHTS_FILE)
        else:
            weight_map = {}
            for number, shard in enumerate(shards, 1):
                name = f"nanoquant-{number:05d}-of-{len(shards):05d}.safetensors"
                _save(shard, scratch / name)
                weight_map.update(dict.fromkeys(shard, name))
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(scratch / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        kinds = {name: table.kind for name, table in parts.tables.items()}
        entry = replace(parts.settings, shards=len(shards), tables=kinds).to_dict()
        write_json(scratch / "config.json", {**parts.config, "quantization_config": entry})
        if companions is not None:
            copy_companions(companions, scratch)
    return Checkpoint(folder)
