# SPDX-License-Identifier: Apache-2.0
"""Rotary parameters of a config.json, by the rules that transformers 5 reads them with.

transformers 5 writes `rope_parameters`, for Gemma-3 one object for each kind of block. Older files have `rope_theta`
beside an optional `rope_scaling`. A file may hold both: then `rope_scaling` replaces the whole of `rope_parameters`,
except in Gemma-3, where it is laid over the entry of the blocks with full attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import NqEdgeError
from .config import RotaryConfig

__all__ = ["read_rotary", "read_rotary_by_kind"]

_KINDS = ("full_attention", "sliding_attention")
#: Parameters that a scaling cannot do without; transformers has no defaults for them.
_NEEDED = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}


def read_rotary(config: Mapping[str, Any], positions: int) -> RotaryConfig:
    """The one rotary embedding of a model.

    Args:
        config: config.json.
        positions: the longest context, which is the original length where no other is stated.

    Raises:
        NqEdgeError: NQ-ARCH for a scaling that is not supported, NQ-MODEL for numbers that are missing or impossible.

    Example:
        >>> read_rotary({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 5e5}}, 64)
        RotaryConfig(theta=10000.0, kind='linear', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, \
original_length=64)
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    entry = dict(_object(config, name))
    if any(kind in entry for kind in _KINDS):
        raise _refused(f"config.json has {name} for kinds of blocks, and this family has one rotary embedding")
    if "original_max_position_embeddings" in config:  # beside the object, it wins over the one inside
        entry["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return _checked(entry, config.get("rope_theta", 10000.0), positions, config)


def read_rotary_by_kind(config: Mapping[str, Any], positions: int) -> tuple[RotaryConfig, RotaryConfig]:
    """The rotary embeddings of Gemma-3: that of blocks with full attention, and that of local blocks.

    Args:
        config: config.json.
        positions: the longest context, see `read_rotary`.

    Raises:
        NqEdgeError: see `read_rotary`; also NQ-MODEL for one object for all blocks, which transformers ignores.
    """
    entries = _object(config, "rope_parameters")
    if entries and not any(kind in entries for kind in _KINDS):
        raise _refused(
            f"config.json has rope_parameters without the entries {' and '.join(_KINDS)}, which Gemma-3 needs"
        )
    full, local = (dict(_object(entries, kind)) for kind in _KINDS)
    full.update(_object(config, "rope_scaling"))
    return (
        _checked(full, config.get("rope_theta", 1e6), positions, config),
        _checked(local, config.get("rope_local_base_freq", 1e4), positions, config),
    )


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that is an object; {} where it is null or absent."""
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters {name} = {value!r}, not an object.")
    return value


def _refused(message: str) -> NqEdgeError:
    return NqEdgeError("NQ-MODEL", f"{message}.", "Write them as the model's publisher has them.")


def _checked(entry: Mapping[str, Any], theta: Any, positions: int, config: Mapping[str, Any]) -> RotaryConfig:
    kind = entry.get("rope_type", entry.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise NqEdgeError("NQ-ARCH", f"rope type {kind!r} is not supported; {', '.join(_NEEDED)} are.")
    missing = [name for name in _NEEDED[kind] if name not in entry]
    if missing:
        raise _refused(f"config.json has rotary parameters of type {kind} without {missing[0]}")
    try:
        share = float(entry.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0)
        rotary = RotaryConfig(
            theta=float(entry.get("rope_theta", theta)),
            kind=kind,
            factor=float(entry.get("factor", 1.0)),
            low_freq_factor=float(entry.get("low_freq_factor", 1.0)),
            high_freq_factor=float(entry.get("high_freq_factor", 4.0)),
            original_length=int(entry.get("original_max_position_embeddings", positions)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters that are not numbers ({error}).") from error
    if share != 1.0:
        raise NqEdgeError("NQ-ARCH", "partial rotary embedding is not supported.")
    numbers = (rotary.theta, rotary.factor, rotary.low_freq_factor, rotary.high_freq_factor, rotary.original_length)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise NqEdgeError("NQ-MODEL", "config.json has rotary parameters that are not positive.")
    if kind == "llama3" and rotary.high_freq_factor == rotary.low_freq_factor:
        raise NqEdgeError("NQ-MODEL", "config.json has equal low_freq_factor and high_freq_factor, which divide by 0.")
    return rotary
