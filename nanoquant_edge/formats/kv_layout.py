# SPDX-License-Identifier: Apache-2.0
"""The key/value cache that a graph or an engine asks for, under the two spellings that manifests have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NqEdgeError
from .graph import ACTIVATION_DTYPES, ROWS_ONLY_DIALECTS

__all__ = ["KvLayout"]

#: Sizes of a manifest lie below this.
_LARGEST = 1 << 31


@dataclass(frozen=True)
class KvLayout:
    """Key/value cache: [batch, heads, capacity, head_dim] for the keys and for the values of each layer.

    Attributes:
        layers: number of (key, value) pairs.
        heads: key/value heads.
        head_dim: channels a head.
        dtype: "float32", "float16" or "bfloat16".
        capacity: longest context in tokens. An engine's cache has this many slots, always; ONNX Runtime's may have
            fewer.
        in_place: `present.*` is the whole cache, written into the memory of `past_key_values.*`; else it holds the new
            rows alone, [batch, heads, sequence, head_dim], which the runtime copies into the cache.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: str
    capacity: int
    in_place: bool = True

    def to_manifest(self) -> dict[str, Any]:
        """The `kv` entry of a bundle's manifest; the dialect beside it tells `in_place`."""
        return {
            "layers": self.layers,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "dtype": self.dtype,
            "max_capacity": self.capacity,
        }

    @classmethod
    def from_manifest(cls, entry: Any, dialect: str) -> KvLayout:
        """The `kv` entry of a bundle's manifest.

        Args:
            entry: from JSON.
            dialect: of the bundle's graph.

        Raises:
            NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible.
        """
        found = _checked(entry, {"heads": "heads", "capacity": "max_capacity"}, "kv")
        return cls(**found, in_place=dialect not in ROWS_ONLY_DIALECTS)

    def to_engine(self) -> dict[str, Any]:
        """The `kv` entry of an engine, and of the plan that it is built from."""
        return {
            "layers": self.layers,
            "kv_heads": self.heads,
            "head_dim": self.head_dim,
            "capacity": self.capacity,
            "dtype": self.dtype,
            "in_place": self.in_place,
        }

    @classmethod
    def from_engine(cls, entry: Any, name: str = "engine.kv") -> KvLayout:
        """The `kv` entry of an engine.

        Args:
            entry: from JSON.
            name: of the entry, for messages.

        Raises:
            NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible.
        """
        return cls(**_checked(entry, {"heads": "kv_heads", "in_place": "in_place"}, name))


def _checked(entry: Any, spelling: Mapping[str, str], name: str) -> dict[str, Any]:
    """The values of an entry by attribute; `spelling` names those that the entry calls otherwise, or has beside."""
    keys = {key: key for key in ("layers", "heads", "head_dim", "dtype", "capacity")} | dict(spelling)
    if not isinstance(entry, Mapping):
        raise _bad(name, entry)
    if odd := set(keys.values()) ^ set(entry):
        key = min(odd, key=str)
        state = "missing" if key in keys.values() else "unknown"
        raise NqEdgeError("NQ-BUNDLE", f"the manifest's {name}.{str(key)[:100]} is {state}.")
    for attribute, key in keys.items():
        value = entry[key]
        if attribute == "dtype":
            good = value in ACTIVATION_DTYPES
        elif attribute == "in_place":
            good = type(value) is bool
        else:
            good = type(value) is int and 0 < value < _LARGEST
        if not good:
            raise _bad(f"{name}.{key}", value)
    return {attribute: entry[key] for attribute, key in keys.items()}


def _bad(name: str, value: Any) -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", f"the manifest's {name} has the impossible value {str(value)[:100]!r}.")
