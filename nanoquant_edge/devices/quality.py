# SPDX-License-Identifier: Apache-2.0
"""What a rate costs in quality, where that is known: measured by this project, or published for the method.

`quality.json` holds the rows. A model is known by its shape, not by its name, which anybody may give to anything;
models fine-tuned from it have the same shape and will differ somewhat.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..models import DecoderConfig

__all__ = ["QualityRow", "RateAdvice", "quality_rows", "rate_advice"]

_FILE = Path(__file__).parent / "quality.json"
#: A rate is borne where perplexity is at most so many times the dense model's. The rates that are advised.
_BORNE = 2.0
_RATES = (0.55, 0.8, 1.0, 1.5, 2.0)


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


@dataclass(frozen=True)
class RateAdvice:
    """The lowest rate that a model of some size bears.

    Attributes:
        bpw: the rate.
        like: the model of known figures that is nearest in size; the model itself where its figures are known.
        there: its row at that rate; None where the rate lies above all that are known.
        asked: its row at the rate that was asked for; None where there is none.
    """

    bpw: float
    like: str
    there: QualityRow | None
    asked: QualityRow | None


def rate_advice(config: DecoderConfig, bpw: float) -> RateAdvice:
    """The lowest rate at which the model nearest in size at most doubles its perplexity.

    Args:
        config: the model's sizes.
        bpw: rate that was asked for.

    Example:
        >>> from nanoquant_edge.models.config_reader import read_config
        >>> import json
        >>> with open("model/config.json") as file:
        ...     advice = rate_advice(read_config(json.load(file)), 1.0)
        >>> advice.like, advice.bpw
        ('Gemma-3-270M', 2.0)
    """

    def distance(shape: tuple[object, ...]) -> tuple[float, bool]:
        family, hidden, layers, _ = shape
        assert isinstance(hidden, int) and isinstance(layers, int)
        weights = config.hidden_size**2 * config.num_layers  # of the layers, but for a factor that is much the same
        return abs(math.log(hidden**2 * layers / weights)), family != config.family

    nearest = min((shape for shape, _ in _rows()), key=distance)
    rows = sorted((row for shape, row in _rows() if shape == nearest), key=lambda row: row.bpw)
    borne = next((row for row in rows if row.ppl <= _BORNE * row.ppl_dense), None)
    above = next((rate for rate in _RATES if rate > rows[-1].bpw), rows[-1].bpw)
    asked = next((row for row in rows if row.bpw == bpw), None)
    return RateAdvice(borne.bpw if borne else above, rows[0].model, borne, asked)


@functools.cache
def _rows() -> tuple[tuple[tuple[object, ...], QualityRow], ...]:
    entries = json.loads(_FILE.read_text(encoding="utf-8"))["rows"]
    return tuple((tuple(entry.pop("shape")), QualityRow(**entry)) for entry in entries)
