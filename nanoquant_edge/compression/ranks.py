# SPDX-License-Identifier: Apache-2.0
"""From a target rate to the ranks of the layers: the same rate for all (method section 4), or shifted at equal bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import NqEdgeError

__all__ = ["allocate_ranks", "layer_bits", "rank_for_rate"]

_SCALE_BITS = 16
_WORD = 32
#: Above this rate min(m, n) no longer suffices, so the cap is dropped; below it over-complete ranks hurt (section 19).
_CAPPED_UP_TO = 1.25
#: Multipliers of the bits by kind of layer (method section 19, item 1).
_KINDS = {"q_proj": 0.85, "k_proj": 0.9, "v_proj": 1.1, "up_proj": 1.05, "down_proj": 1.15, "fc2": 1.15}


def rank_for_rate(out_features: int, in_features: int, bpw: float) -> int:
    """Rank that spends about `bpw` bits per weight on an out_features x in_features layer.

    r = 32 floor((b m n / (m + n) - 16) / 32), at least 32, and at most min(m, n) for rates up to 1.25: the official
    rule, with its cap dropped where the rate cannot be reached otherwise.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.
    """
    if not (math.isfinite(bpw) and 0.05 <= bpw <= 8):
        raise NqEdgeError("NQ-OPTION", f"bits per weight must lie between 0.05 and 8, not {bpw}.")
    m, n = out_features, in_features
    budget = bpw * m * n / (m + n) - _SCALE_BITS
    rank = max(_WORD, _WORD * (int(budget) // _WORD))
    return min(rank, m, n) if bpw <= _CAPPED_UP_TO else rank


def layer_bits(out_features: int, in_features: int, rank: int) -> int:
    """Stored bits of a layer with two 16-bit scale vectors, word padding counted (paper Eq. 58)."""
    words = out_features * math.ceil(rank / _WORD) + rank * math.ceil(in_features / _WORD)
    return _WORD * words + _SCALE_BITS * (out_features + in_features)


def allocate_ranks(
    shapes: Mapping[str, tuple[int, int]],
    blocks: Mapping[str, int],
    bpw: float,
    depth: float = 0.0,
    kinds: bool = False,
) -> dict[str, int]:
    """Ranks of all layers of a model.

    With depth 0 and no kinds every layer has `rank_for_rate`. Otherwise each layer's share of the bits is multiplied
    by exp(depth (b / (B - 1) - 1/2)) and by its kind's factor (method section 19, item 1), in whole words of rank, and
    the total is no more than that of the equal rates.

    Args:
        shapes: layer name -> (out_features, in_features).
        blocks: layer name -> number of its block.
        bpw: target rate.
        depth: exponent of the growth from the first to the last block.
        kinds: shift bits between kinds of layers.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.
    """
    even = {name: rank_for_rate(m, n, bpw) for name, (m, n) in shapes.items()}
    if depth == 0 and not kinds:
        return even
    last = max(blocks.values(), default=0) or 1
    budget = sum(layer_bits(*shapes[name], rank) for name, rank in even.items())
    wanted = {}
    for name, rank in even.items():
        kind = _KINDS.get(name.rpartition(".")[2], 1.0) if kinds else 1.0
        wanted[name] = rank * kind * math.exp(depth * (blocks[name] / last - 0.5))
    size = {name: m + n for name, (m, n) in shapes.items()}
    scale = sum(even[name] * size[name] for name in even) / sum(wanted[name] * size[name] for name in even)
    ceiling = {name: min(m, n) if bpw <= _CAPPED_UP_TO else math.inf for name, (m, n) in shapes.items()}
    wanted = {name: min(value * scale, ceiling[name]) for name, value in wanted.items()}
    ranks = {name: int(min(ceiling[name], max(_WORD, _WORD * (int(value) // _WORD)))) for name, value in wanted.items()}
    spare = budget - sum(layer_bits(*shapes[name], rank) for name, rank in ranks.items())
    # What rounding down left over goes, a word of rank at a time, to the layers that it took most from.
    order = sorted(ranks, key=lambda name: (ranks[name] - wanted[name], name))
    for name in [*order, *order]:
        larger = int(min(ranks[name] + _WORD, ceiling[name]))
        extra = layer_bits(*shapes[name], larger) - layer_bits(*shapes[name], ranks[name])
        if larger > ranks[name] and extra <= spare:
            ranks[name], spare = larger, spare - extra
    while spare < 0:  # small models at low rates, where the least rank of a word is already too much
        name = max(ranks, key=lambda name: (ranks[name] - wanted[name], name))
        if ranks[name] <= _WORD:
            return even
        spare += layer_bits(*shapes[name], ranks[name]) - layer_bits(*shapes[name], ranks[name] - _WORD)
        wanted[name] += _WORD
        ranks[name] -= _WORD
    return ranks
