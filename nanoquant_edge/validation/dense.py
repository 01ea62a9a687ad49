# SPDX-License-Identifier: Apache-2.0
"""The model that everything else is held against: plain PyTorch linears holding the dense weights.

The weights are rebuilt here from the checkpoint's files by code of its own. It shares nothing with
`nanoquant_edge.formats.checkpoint` (packing, file reading) or with `NanoQuantLinear`, so that a mistake there cannot
hide by being made twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from ..errors import NqEdgeError
from ..models.agreement import check_agreement
from ..models.config_reader import read_config
from ..system.files import read_json

__all__ = ["dense_model", "dense_weight", "table_rows"]


def _column_signs(words: torch.Tensor, columns: int) -> np.ndarray:
    """+1 / -1 float64 (rows, columns), one word of each row at a time (docs/FORMAT.md, "Packed words")."""
    unsigned = words.numpy().astype(np.int64) & 0xFFFFFFFF
    signs = np.empty((unsigned.shape[0], columns), np.float64)
    for first in range(0, columns, 32):
        powers = 2 ** np.arange(min(32, columns - first), dtype=np.int64)
        bits = unsigned[:, first // 32, np.newaxis] // powers % 2
        signs[:, first : first + len(powers)] = np.where(bits == 1, -1.0, 1.0)
    return signs


def dense_weight(tensors: dict[str, torch.Tensor], rank: int) -> torch.Tensor:
    """Dense weight of one layer, float32 (out_features, in_features), computed in float64.

    Args:
        tensors: the layer's `u_packed`, `v_packed`, `scale_out`, `scale_in` and perhaps `scale_mid`.
        rank: inner dimension.
    """
    scale_out = tensors["scale_out"].double().numpy()
    scale_in = tensors["scale_in"].double().numpy()
    left = _column_signs(tensors["u_packed"], rank) * scale_out.reshape(-1, 1)
    right = _column_signs(tensors["v_packed"], scale_in.size) * scale_in
    if "scale_mid" in tensors:
        left = left * tensors["scale_mid"].double().numpy()
    return torch.from_numpy((left @ right).astype(np.float32))


def table_rows(codes: torch.Tensor, scales: torch.Tensor, kind: str) -> torch.Tensor:
    """Dense rows of a quantized table, float32, one column at a time (docs/FORMAT.md, "Quantized tables").

    Args:
        codes: int8 (rows, bytes).
        scales: float16 (rows, groups).
        kind: "int8" or "int4".
    """
    raw, factors = codes.numpy().astype(np.int64), scales.double().numpy()
    if kind == "int8":
        return torch.from_numpy((raw * factors[:, [0]]).astype(np.float32))
    columns = []
    for column in range(2 * raw.shape[1]):
        nibble = raw[:, column // 2] // (16 if column % 2 else 1) % 16
        columns.append(np.where(nibble > 7, nibble - 16, nibble) * factors[:, column // 32])
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "nanoquant.safetensors.index.json"
    if not index.is_file():
        return [folder / "nanoquant.safetensors"]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [folder / name for name in names]


def dense_model(folder: str | Path) -> Any:
    """A transformers causal language model in float32 with the checkpoint's dense weights, in evaluation mode.

    Args:
        folder: a NanoQuant checkpoint, already checked by `Checkpoint`.

    Raises:
        NqEdgeError: NQ-CKPT when its tensors do not fill the model, NQ-MODEL when this package and transformers read
            its configuration in two ways.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    ranks: dict[str, int] = config.quantization_config["ranks"]
    kinds: dict[str, str] = config.quantization_config.get("tables", {})
    del config.quantization_config
    state: dict[str, torch.Tensor] = {}
    factors: dict[str, dict[str, torch.Tensor]] = {name: {} for name in [*ranks, *kinds]}
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                layer, _, part = name.rpartition(".")
                if layer in factors and part != "bias":
                    factors[layer][part] = file.get_tensor(name)
                else:
                    state[name] = file.get_tensor(name).float()
    for table, kind in kinds.items():
        state[f"{table}.weight"] = table_rows(**factors.pop(table), kind=kind)
    for layer, rank in ranks.items():
        state[f"{layer}.weight"] = dense_weight(factors.pop(layer), rank)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # Gemma-2 has eager attention only
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = sorted(set(missing) - set(model.all_tied_weights_keys or {})) + sorted(unexpected)
    if lost:
        raise NqEdgeError(
            "NQ-CKPT", f"the checkpoint's tensors do not fit the model: {lost[0]} and {len(lost)} in all."
        )
    # The bundle was written by this package's reading of config.json; a reference of another reading proves nothing.
    check_agreement(read_config(read_json(folder / "config.json", "NQ-CKPT")), model, str(folder))
    return model.eval()
