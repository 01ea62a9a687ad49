# SPDX-License-Identifier: Apache-2.0
"""Rotary parameters of a config.json, in the spellings that transformers has had for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import NqEdgeError
from .config import RotaryConfig

__all__ = ["read_rotary"]

_KINDS = ("full_attention", "sliding_attention")


def read_rotary(config: Mapping[str, Any], theta: float, kind: str = "") -> RotaryConfig:
    """The rotary embedding of one kind of block.

    Args:
        config: config.json. transformers 5 writes `rope_parameters`, for Gemma-3 one object a kind of block; older
            files have `rope_theta` beside an optional `rope_scaling`, which applies to blocks with full attention.
        theta: base where the file names none.
        kind: "full_attention" or "sliding_attention" where the family tells them apart, "" elsewhere.

    Raises:
        NqEdgeError: NQ-ARCH for a scaling that is not supported, NQ-MODEL for impossible numbers.
    """
    entry: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name) or {}
        if isinstance(value, Mapping) and any(one in value for one in _KINDS):
            value = value.get(kind) or {}
        elif kind == "sliding_attention":
            # One object for all blocks describes those with full attention; Gemma-2, which has one embedding, does not
            # ask for this kind.
            value = {}
        if not isinstance(value, Mapping):
            raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters {name} = {value!r}, not an object.")
        entry.update(value)
    usual = theta if kind == "sliding_attention" else config.get("rope_theta", theta)
    return _checked(entry, usual, config)


def _checked(entry: Mapping[str, Any], theta: Any, config: Mapping[str, Any]) -> RotaryConfig:
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise NqEdgeError("NQ-ARCH", f"rope type {kind!r} is not supported; default, linear and llama3 are.")
    try:
        share = float(entry.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0)
        rotary = RotaryConfig(
            theta=float(entry.get("rope_theta", theta)),
            kind=kind,
            factor=float(entry.get("factor", 1.0)),
            low_freq_factor=float(entry.get("low_freq_factor", 1.0)),
            high_freq_factor=float(entry.get("high_freq_factor", 4.0)),
            original_length=int(entry.get("original_max_position_embeddings", 8192)),
        )
    except (TypeError, ValueError) as error:
        raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters that are not numbers ({error}).") from error
    if share != 1.0:
        raise NqEdgeError("NQ-ARCH", "partial rotary embedding is not supported.")
    if not (math.isfinite(rotary.theta) and rotary.theta > 0 and math.isfinite(rotary.factor) and rotary.factor > 0):
        raise NqEdgeError("NQ-MODEL", "config.json has rotary parameters that are not positive.")
    return rotary
