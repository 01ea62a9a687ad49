# SPDX-License-Identifier: Apache-2.0
"""The `quantization_config` entry of a checkpoint's config.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import NqEdgeError
from .table import TABLE_FORMATS

__all__ = ["FORMAT_VERSION", "QUANT_METHOD", "SCALE_DTYPES", "QuantizationSettings"]

QUANT_METHOD = "nanoquant"
FORMAT_VERSION = 1
SCALE_DTYPES = ("float16", "bfloat16", "float32")
PACKING = "int32-rowmajor-lsb-v1"


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
        known = {name: entry[name] for name in cls.__dataclass_fields__ if name in entry}
        ranks = known.get("ranks")
        rates = (known.get("target_bpw"), known.get("true_bpw"))
        good = (
            isinstance(ranks, dict)
            and bool(ranks)
            and all(isinstance(k, str) and type(v) is int and 0 < v < 1 << 24 for k, v in ranks.items())
            and all(isinstance(rate, int | float) and math.isfinite(rate) for rate in rates)
            and known.get("scale_dtype", "float16") in SCALE_DTYPES
            and isinstance(known.get("recipe", {}), dict)
            and isinstance(known.get("calibration", {}), dict)
            and isinstance(known.get("embedding", ""), str)
            and isinstance(known.get("head", ""), str)
            and isinstance(known.get("tables", {}), dict)
            and all(isinstance(v, str) and v in TABLE_FORMATS for v in known.get("tables", {}).values())
            and type(known.get("shards", 1)) is int
            and 0 < known.get("shards", 1) < 1 << 16
        )
        if not good:
            raise NqEdgeError("NQ-CKPT", "the checkpoint's quantization_config has missing or impossible values.")
        return cls(**known)
