# SPDX-License-Identifier: Apache-2.0
"""The packed checkpoint format: signs to words, reading, writing (docs/FORMAT.md). Needs no PyTorch."""

from __future__ import annotations

from ..safetensors_file import TensorFile
from .layer import PackedLayer
from .packing import pack_signs, unpack_signs, words_for
from .reader import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from .settings import FORMAT_VERSION, QUANT_METHOD, QuantizationSettings
from .table import TABLE_FORMATS, QuantizedTable, quantize_table
from .tiles import from_tiles, tiles_shape, to_tiles
from .writer import CheckpointParts, true_bits_per_weight, write_checkpoint

__all__ = [
    "FORMAT_VERSION",
    "INDEX_FILE",
    "QUANT_METHOD",
    "TABLE_FORMATS",
    "WEIGHTS_FILE",
    "Checkpoint",
    "CheckpointParts",
    "PackedLayer",
    "QuantizationSettings",
    "QuantizedTable",
    "TensorFile",
    "from_tiles",
    "pack_signs",
    "quantize_table",
    "tiles_shape",
    "to_tiles",
    "true_bits_per_weight",
    "unpack_signs",
    "words_for",
    "write_checkpoint",
]
