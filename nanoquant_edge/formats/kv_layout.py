# SPDX-License-Identifier: Apache-2.0
"""The key/value cache that a graph or an engine asks for, under the two spellings that manifests have for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .entry import Entry
from .graph import ACTIVATION_DTYPES, ROWS_ONLY_DIALECTS

__all__ = ["KvLayout"]

#: No model comes near: names and buffers are made for each layer, before any of them is compared with a graph.
_MOST_LAYERS, _MOST_CHANNELS = 1 << 12, 1 << 20


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
    def from_manifest(cls, entry: Entry, dialect: str) -> KvLayout:
        """The `kv` entry of a bundle's manifest.

        Args:
            entry: of the manifest.
            dialect: of the bundle's graph.

        Raises:
            NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible.
        """
        entry.exactly("layers", "heads", "head_dim", "dtype", "max_capacity")
        return cls(
            **_sizes(entry, "heads"),
            capacity=entry.integer("max_capacity", 1),
            in_place=dialect not in ROWS_ONLY_DIALECTS,
        )

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
    def from_engine(cls, entry: Entry) -> KvLayout:
        """The `kv` entry of an engine, or of the plan that it is built from.

        Raises:
            NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible.
        """
        entry.exactly("layers", "kv_heads", "head_dim", "capacity", "dtype", "in_place")
        return cls(**_sizes(entry, "kv_heads"), capacity=entry.integer("capacity", 1), in_place=entry.flag("in_place"))


def _sizes(entry: Entry, heads: str) -> dict[str, Any]:
    """What both spellings have in common, but for the name of the heads."""
    return {
        "layers": entry.integer("layers", 1, _MOST_LAYERS),
        "heads": entry.integer(heads, 1, _MOST_CHANNELS),
        "head_dim": entry.integer("head_dim", 1, _MOST_CHANNELS),
        "dtype": entry.text("dtype", choices=ACTIVATION_DTYPES),
    }
