# SPDX-License-Identifier: Apache-2.0
"""What a rate costs in quality, where that is known: measured by this project, or published for the method.

`quality.json` holds the rows. A model is known by its shape, not by its name, which anybody may give to anything;
models fine-tuned from it have the same shape and will differ somewhat.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from ..models import DecoderConfig

__all__ = ["QualityRow", "quality_rows"]

_FILE = Path(__file__).parent / "quality.json"


@dataclass(frozen=True)
class QualityRow:
    """Perplexity on WikiText-2's test text at a rate and of the dense model; kind "measured" or "published"."""

    model: str
    bpw: float
    ppl: float
    ppl_dense: float
    kind: str
    source: str


def quality_rows(config: DecoderConfig) -> list[QualityRow]:
    """Rows of models of this shape, by rising rate; empty where nothing is known."""
    shape = (config.family, config.hidden_size, config.num_layers, config.vocab_size)
    return sorted((row for known, row in _rows() if known == shape), key=lambda row: row.bpw)


@functools.cache
def _rows() -> tuple[tuple[tuple[object, ...], QualityRow], ...]:
    entries = json.loads(_FILE.read_text(encoding="utf-8"))["rows"]
    return tuple((tuple(entry.pop("shape")), QualityRow(**entry)) for entry in entries)
