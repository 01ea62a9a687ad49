# SPDX-License-Identifier: Apache-2.0
"""From a target rate to the rank of a layer (docs/METHOD.md, section 2); plain arithmetic, for forecasts too."""

from __future__ import annotations

import math

from ..errors import NqEdgeError

__all__ = ["SCALE_BITS", "layer_bits", "rank_for_rate"]

#: Bits of a scale, of which a layer has one for each input and output.
SCALE_BITS = 16
_WORD = 32
#: Above this rate min(m, n) no longer suffices, so the cap is dropped; below it over-complete ranks hurt.
_CAPPED_UP_TO = 1.25


def rank_for_rate(out_features: int, in_features: int, bpw: float) -> int:
    """Rank that spends about `bpw` bits per weight on an out_features x in_features layer.

    r = 32 floor((b m n / (m + n) - 16) / 32), at least 32, and at most min(m, n) for rates up to 1.25: the official
    rule, with its cap dropped where the rate cannot be reached otherwise.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.

    Example:
        >>> rank_for_rate(576, 1536, 1.0)
        384
    """
    if not (math.isfinite(bpw) and 0.05 <= bpw <= 8):
        raise NqEdgeError("NQ-OPTION", f"bits per weight must lie between 0.05 and 8, not {bpw}.")
    m, n = out_features, in_features
    budget = bpw * m * n / (m + n) - SCALE_BITS
    rank = max(_WORD, _WORD * (int(budget) // _WORD))
    return min(rank, m, n) if bpw <= _CAPPED_UP_TO else rank


def layer_bits(out_features: int, in_features: int, rank: int) -> int:
    """Stored bits of a layer with two 16-bit scale vectors, word padding counted (paper Eq. 58)."""
    words = out_features * math.ceil(rank / _WORD) + rank * math.ceil(in_features / _WORD)
    return _WORD * words + SCALE_BITS * (out_features + in_features)
