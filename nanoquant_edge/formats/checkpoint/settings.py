# SPDX-License-Identifier: Apache-2.0
"""The `quantization_config` entry of a checkpoint's config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import NqEdgeError
from ..entry import Entry
from .table import TABLE_FORMATS

__all__ = ["FORMAT_VERSION", "QUANT_METHOD", "SCALE_DTYPES", "QuantizationSettings"]

QUANT_METHOD = "nanoquant"
FORMAT_VERSION = 1
SCALE_DTYPES = ("float16", "bfloat16", "float32")
PACKING = "int32-rowmajor-lsb-v1"
_LARGEST_RANK, _MOST_SHARDS = (1 << 24) - 1, (1 << 16) - 1


@dataclass(frozen=True)
class QuantizationSettings:
    """What the reader of a checkpoint must know, and where it came from.

    Attributes:
        target_bpw: bits per weight asked for.
        true_bpw: bits per weight of the stored words (padding counted) and scales, over the compressed layers.
        ranks: module name -> rank, for every compressed layer, in model order.
        scale_dtype: type of every scale vector.
        embedding: storage of the embedding table ("float16", "bfloat16", "float32", "int8", "int4").
        head: storage of the output head; "tied" when it is the embedding table.
        tables: module name -> "int8" or "int4", for every table that is stored in codes and scales.
        recipe: preset and settings of the compression, for provenance.
        calibration: text name, windows, window length, seed.
        shards: number of weight files; one is `nanoquant.safetensors`, more have an index. Set by the writer.
    """

    target_bpw: float
    true_bpw: float
    ranks: dict[str, int]
    scale_dtype: str = "float16"
    embedding: str = "float16"
    head: str = "tied"
    tables: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    packing: str = PACKING
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The JSON object written into config.json."""
        return {"quant_method": QUANT_METHOD, **asdict(self)}

    @classmethod
    def from_dict(cls, entry: Any) -> QuantizationSettings:
        """Read and check the JSON object.

        Raises:
            NqEdgeError: NQ-CKPT when it is not a NanoQuant entry of a version this package knows.
        """
        if not isinstance(entry, dict) or entry.get("quant_method") != QUANT_METHOD:
            raise NqEdgeError(
                "NQ-CKPT",
                "config.json has no quantization_config of method 'nanoquant': this is not a NanoQuant checkpoint.",
                "Run `nq-edge compress` on the model first.",
            )
        if entry.get("format_version") != FORMAT_VERSION or entry.get("packing") != PACKING:
            raise NqEdgeError(
                "NQ-CKPT",
                f"the checkpoint has format {entry.get('format_version')!r} with packing {entry.get('packing')!r}; "
                f"this version reads format {FORMAT_VERSION} with {PACKING!r}.",
                "Install the nanoquant-edge version that wrote it, or compress again.",
            )
        return cls._read(Entry(entry, "quantization_config", owner="config.json's", code="NQ-CKPT"))

    @classmethod
    def _read(cls, entry: Entry) -> QuantizationSettings:
        ranks, tables = entry.entry("ranks"), entry.entry("tables") if "tables" in entry else None
        layers = ranks.names()
        entry.need(bool(layers), "ranks", "{}")
        found: dict[str, Any] = {
            "target_bpw": entry.number("target_bpw"),
            "true_bpw": entry.number("true_bpw"),
            "ranks": {layer: ranks.integer(layer, 1, _LARGEST_RANK) for layer in layers},
        }
        if tables is not None:
            found["tables"] = {module: tables.text(module, choices=tuple(TABLE_FORMATS)) for module in tables.names()}
        if "scale_dtype" in entry:
            found["scale_dtype"] = entry.text("scale_dtype", choices=SCALE_DTYPES)
        if "shards" in entry:
            found["shards"] = entry.integer("shards", 1, _MOST_SHARDS)
        found |= {name: entry.text(name) for name in ("embedding", "head") if name in entry}
        found |= {name: entry.anything(name) for name in ("recipe", "calibration") if name in entry}
        return cls(**found)
