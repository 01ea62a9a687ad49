# SPDX-License-Identifier: Apache-2.0
"""Ranks of a model's layers: equal rates, or bits shifted between layers (docs/METHOD.md, sections 2 and 11)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

from ...models.rates import SCALE_BITS, layer_bits, rank_for_rate

__all__ = ["allocate_ranks"]

_WORD = 32
#: Up to this rate ranks stay within min(m, n), as in `rank_for_rate`.
_CAPPED_UP_TO = 1.25


def allocate_ranks(
    shapes: Mapping[str, tuple[int, int]],
    blocks: Mapping[str, int],
    *,
    bpw: float,
    depth: float = 0.0,
    shares: Mapping[str, float] | None = None,
    fill: bool = False,
) -> dict[str, int]:
    """Ranks of all layers of a model.

    With depth 0, no shares and no filling every layer has `rank_for_rate`. Otherwise each layer's part of the bits is
    multiplied by exp(depth (b / (B - 1) - 1/2)) and its share (docs/METHOD.md, section 11), in whole words of rank. The
    total is no more than that of the equal rates, or with `fill` no more than the target rate itself.

    Args:
        shapes: layer name -> (out_features, in_features).
        blocks: layer name -> number of its block.
        bpw: target rate.
        depth: exponent of the growth from the first to the last block.
        shares: layer name -> a further factor, from measured sensitivities.
        fill: spend what equal rates leave of the target when their ranks are rounded down to whole words.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.

    Example:
        >>> shapes = {f"{b}.up": (1536, 576) for b in range(4)}
        >>> allocate_ranks(shapes, {name: int(name[0]) for name in shapes}, bpw=1.0, fill=True)
        {'0.up': 384, '1.up': 384, '2.up': 416, '3.up': 416}
    """
    even = {name: rank_for_rate(m, n, bpw) for name, (m, n) in shapes.items()}
    if depth == 0 and shares is None and not fill:
        return even
    last = max(blocks.values(), default=0) or 1
    ceiling = {name: min(m, n) if bpw <= _CAPPED_UP_TO else math.inf for name, (m, n) in shapes.items()}
    size = {name: m + n for name, (m, n) in shapes.items()}
    # Before rounding; a layer may have more than its rate where that is less than one word.
    whole = {name: max(rank, _unrounded(shapes[name], bpw)) if fill else rank for name, rank in even.items()}
    wanted = {}
    for name, rank in whole.items():
        share = 1.0 if shares is None else shares[name]
        wanted[name] = rank * share * math.exp(depth * (blocks[name] / last - 0.5))
    scale = sum(whole[name] * size[name] for name in even) / sum(wanted[name] * size[name] for name in even)
    wanted = {name: min(value * scale, ceiling[name]) for name, value in wanted.items()}
    words = {name: int(value / _WORD + 1e-6) for name, value in wanted.items()}  # 255.9999 is 256
    ranks = {name: int(min(ceiling[name], _WORD * max(1, count))) for name, count in words.items()}

    def cost(name: str, rank: int) -> int:
        return layer_bits(*shapes[name], rank)

    budget = sum(cost(name, even[name]) for name in ranks)
    if fill:
        budget = max(budget, int(bpw * sum(m * n for m, n in shapes.values())))
    spare = budget - sum(cost(name, ranks[name]) for name in ranks)
    # What rounding down left over goes, a word of rank at a time, to the layer that lacks most. A layer whose next word
    # no longer fits is done, so of two equal layers the one that wants more never gets less. Of layers that lack the
    # same the latest comes first, where bits save most.
    lacking = [(ranks[name] - wanted[name], -blocks[name], name) for name in ranks]
    heapq.heapify(lacking)
    while lacking:
        *_, name = heapq.heappop(lacking)
        larger = int(min(ranks[name] + _WORD, ceiling[name]))
        extra = cost(name, larger) - cost(name, ranks[name])
        if larger > ranks[name] and extra <= spare:
            ranks[name], spare = larger, spare - extra
            heapq.heappush(lacking, (larger - wanted[name], -blocks[name], name))
    while spare < 0:  # low rates, where a layer's least rank of one word is more than its share
        name = max(ranks, key=lambda name: (ranks[name] > _WORD, ranks[name] - wanted[name], name))
        if ranks[name] <= _WORD:
            return even
        spare += cost(name, ranks[name]) - cost(name, ranks[name] - _WORD)
        ranks[name] -= _WORD
    return ranks


def _unrounded(shape: tuple[int, int], bpw: float) -> float:
    """The rank, not a whole number, that spends a rate exactly."""
    m, n = shape
    return bpw * m * n / (m + n) - SCALE_BITS
