# SPDX-License-Identifier: Apache-2.0
"""Which slot holds which tokens: finished texts stay where they are until their slot is needed for another.

A request takes the slot that holds the longest beginning of its prompt. If that slot has more to lose than it gives, or
another text is being written there, the beginning is copied into the slot that was not used for the longest time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Place", "Shelf", "common_length"]

#: Beginnings that are too short to be worth a copy.
_FEW = 8


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens that two sequences begin with alike.

    Example:
        >>> common_length([1, 2, 3], [1, 2, 4, 5])
        2
    """
    low, high = 0, min(len(a), len(b))
    while low < high:  # equal slices are compared at the speed of memory
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Place:
    """Where a text goes.

    Attributes:
        slot: its slot.
        source: the slot whose beginning it shares; the same one where it stays in place.
        length: tokens of that beginning.
    """

    slot: int
    source: int
    length: int


class Shelf:
    """The tokens of every slot.

    Args:
        count: slots.
        limit: most tokens in all slots together.

    Attributes:
        held: for each slot, the tokens whose keys and values it holds.
    """

    def __init__(self, count: int, limit: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(count)]
        self.limit = limit
        self._reserved: dict[int, int] = {}  # slots that are being written, and the tokens they may come to
        self._used = [0] * count
        self._clock = 0

    @property
    def tokens(self) -> int:
        """Tokens held in all slots."""
        return sum(map(len, self.held))

    @property
    def free(self) -> list[int]:
        """Slots without a text that is being written, the longest unused first and empty ones before them."""
        slots = (slot for slot in range(len(self.held)) if slot not in self._reserved)
        return sorted(slots, key=lambda slot: (bool(self.held[slot]), self._used[slot], slot))

    def has_room(self, need: int) -> bool:
        """Whether a text that may come to `need` tokens can begin now, once kept tokens are given up."""
        return bool(self.free) and sum(self._reserved.values()) + need <= self.limit

    def find(self, ids: Sequence[int]) -> Place:
        """The best place for a prompt; at least its last token is left to be computed. Needs a free slot."""
        prompt = list(ids)
        free = self.free
        common = [min(common_length(held, prompt), len(prompt) - 1) for held in self.held]
        # Of equals, a free one: nothing needs to be copied then.
        source = max(range(len(common)), key=lambda slot: (common[slot], slot not in self._reserved, -slot))
        length, victim = common[source], free[0]
        lost = len(self.held[source]) - length
        if source in free and (victim == source or lost <= max(_FEW, length // 4)):
            return Place(source, source, length)
        if length < _FEW:
            return Place(victim, victim, common[victim])
        return Place(victim, source, length)

    def take(self, slot: int, ids: Sequence[int], need: int) -> None:
        """A text is written in a slot, which holds `ids` now and may come to `need` tokens."""
        self._reserved[slot] = need
        self.held[slot] = list(ids)
        self._touch(slot)

    def leave(self, slot: int, ids: Sequence[int]) -> None:
        """A text has ended; the slot holds these tokens of it."""
        self._reserved.pop(slot, None)
        self.held[slot] = list(ids)
        self._touch(slot)

    def surplus(self) -> list[int]:
        """Free slots to be emptied, so that texts that are being written can come to the tokens reserved for them."""
        kept = [slot for slot in self.free if self.held[slot]]
        total = sum(self._reserved.values()) + sum(len(self.held[slot]) for slot in kept)
        found = []
        for slot in kept:
            if total <= self.limit:
                break
            found.append(slot)
            total -= len(self.held[slot])
        return found

    def _touch(self, slot: int) -> None:
        self._clock += 1
        self._used[slot] = self._clock
