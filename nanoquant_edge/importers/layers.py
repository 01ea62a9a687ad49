# SPDX-License-Identifier: Apache-2.0
"""Layers of other NanoQuant implementations: their names and shapes to ours. The words are the same (docs/FORMAT.md).

Two sets of names are known: those of the official code (github.com/SamsungLabs/NanoQuant: `V_packed`, `U_packed`,
`V_shape`, `U_shape`, `scale_pre`, `scale_post`) and those of arelath/NanoQuant (its layout `llama.cpp-i32-lsb-v1`: the
same in its bridge checkpoints, `nq_v`, `nq_u`, `nq_scale_*` in GGUF files), which adds `scale_mid` and may keep some
input columns exactly.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint.layer import PackedLayer
from ..formats.checkpoint.packing import words_for

__all__ = ["PARTS", "foreign_layer_names", "foreign_layers", "is_part"]

#: Suffix -> part of a layer; "exact" stands for columns kept outside the factors.
PARTS = {
    "V_packed": "v_packed",
    "nq_v": "v_packed",
    "U_packed": "u_packed",
    "nq_u": "u_packed",
    "V_shape": "v_shape",
    "U_shape": "u_shape",
    "scale_pre": "scale_in",
    "nq_scale_pre": "scale_in",
    "scale_mid": "scale_mid",
    "nq_scale_mid": "scale_mid",
    "scale_post": "scale_out",
    "nq_scale_post": "scale_out",
    "bias": "bias",
    "salient_idx": "exact",
    "nq_salient_idx": "exact",
    "salient_weight": "exact",
    "nq_salient_weight": "exact",
    "salient_scale": "exact",
    "nq_salient_scale": "exact",
}
_FLOATS = ("float16", "bfloat16", "float32")
_Arrays = Mapping[str, NDArray[np.generic]]


def foreign_layer_names(tensors: _Arrays) -> list[str]:
    """Names of the layers of which packed words are there, in the file's order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors if _part(name) == "v_packed"))


def foreign_layers(tensors: _Arrays) -> dict[str, PackedLayer]:
    """The compressed layers among named tensors, checked.

    Args:
        tensors: name -> array; scales of shape (k,) or (1, k), float16, bfloat16 (ml_dtypes) or float32.

    Returns:
        Module name -> factors, their tail bits cleared, a mid scale of ones left out.

    Raises:
        NqEdgeError: NQ-CKPT naming the first layer that is incomplete, contradicts itself, or keeps columns exactly.
    """
    grouped: dict[str, dict[str, NDArray[np.generic]]] = {name: {} for name in foreign_layer_names(tensors)}
    for name, array in tensors.items():
        layer, part = name.rpartition(".")[0], _part(name)
        if layer in grouped and part is not None:
            if part != "exact" and part in grouped[layer]:
                raise NqEdgeError("NQ-CKPT", f"layer {layer} has two {part}.")
            grouped[layer][part] = array
    return {name: _layer(name, parts) for name, parts in grouped.items()}


def is_part(name: str, layers: Container[str]) -> bool:
    """Whether a tensor belongs to one of the layers of these names."""
    return _part(name) is not None and name.rpartition(".")[0] in layers


def _part(name: str) -> str | None:
    return PARTS.get(name.rpartition(".")[2])


def _layer(name: str, parts: dict[str, NDArray[np.generic]]) -> PackedLayer:
    exact = parts.pop("exact", None)
    if exact is not None and exact.size:
        raise NqEdgeError(
            "NQ-CKPT",
            f"layer {name} keeps some input columns exactly, which this format has no place for.",
            "Make it again without salient columns.",
        )
    missing = [part for part in ("u_packed", "v_packed", "scale_in", "scale_out") if part not in parts]
    if missing:
        raise NqEdgeError("NQ-CKPT", f"layer {name} has no {missing[0]}.")
    vectors = {part: _vector(name, part, parts[part]) for part in _VECTORS if part in parts}
    u, v = parts["u_packed"], parts["v_packed"]
    n, m = len(vectors["scale_in"]), len(vectors["scale_out"])
    rank = v.shape[0] if v.ndim == 2 else 0
    expected = {"v_packed": (rank, words_for(n)), "u_packed": (m, words_for(rank))}
    lengths = {"scale_mid": rank, "bias": m}
    stated = {"v_shape": (rank, n), "u_shape": (m, rank)}
    good = rank > 0 and n > 0 and m > 0
    good = good and all(parts[part].dtype == np.int32 and parts[part].shape == expected[part] for part in expected)
    good = good and all(len(vectors[part]) == length for part, length in lengths.items() if part in vectors)
    good = good and all(np.array_equal(parts[part].reshape(-1), stated[part]) for part in stated if part in parts)
    if not good:
        shapes = ", ".join(f"{part} {tuple(array.shape)} {array.dtype}" for part, array in parts.items())
        raise NqEdgeError("NQ-CKPT", f"layer {name} contradicts itself: {shapes[:300]}.")
    mid = vectors.get("scale_mid")
    return PackedLayer(
        u_packed=_without_tail(u, rank),
        v_packed=_without_tail(v, n),
        scale_out=vectors["scale_out"],
        scale_in=vectors["scale_in"],
        scale_mid=None if mid is None or bool((mid == 1).all()) else mid,
        bias=vectors.get("bias"),
    )


_VECTORS = ("scale_in", "scale_mid", "scale_out", "bias")


def _vector(layer: str, part: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.size != max(array.shape, default=0) or array.dtype.name not in _FLOATS:
        raise NqEdgeError("NQ-CKPT", f"{layer}: {part} {array.dtype} {tuple(array.shape)} is not a vector of floats.")
    flat = np.ascontiguousarray(array).reshape(-1)
    if not np.isfinite(flat.astype(np.float32)).all():
        raise NqEdgeError("NQ-NUMERIC", f"{layer}: {part} holds NaN or infinity.")
    return flat


def _without_tail(words: NDArray[np.generic], columns: int) -> NDArray[np.int32]:
    """A copy with the bits after the last column cleared; they mean nothing, and our reader wants them 0."""
    cleared = np.array(words, np.int32)
    if columns % 32:
        cleared[:, -1] &= np.int32((1 << columns % 32) - 1)
    return cleared
