# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens, so that one step of the model checks several.

The model computes the logits of a text's last token and of all guesses in one call. The sampler then chooses as ever,
position by position, and a guess holds as long as it is what was chosen. For a guess without a distribution of its own
this is the rejection rule of speculative sampling (arXiv 2211.17192, algorithm 1, with q a single token: accepted with
probability p(x), else drawn from p without x), so the text has the distribution, and where steps are exact the very
tokens, of one written without guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..errors import NqEdgeError
from ..runtimes.slots import SlotRow, Slots
from .shelf import common_length

__all__ = ["Drafter", "Guess", "ModelDrafter", "NgramDrafter"]


@dataclass(frozen=True)
class Guess:
    """What guesses are asked for.

    Attributes:
        slot: of the text.
        ids: its tokens so far; the same growing list for as long as the text lives.
        most: most tokens.
    """

    slot: int
    ids: Sequence[int]
    most: int


class Drafter(Protocol):
    """Guesses how texts go on; called by the scheduler's thread only."""

    def guess(self, texts: Sequence[Guess]) -> list[list[int]]:
        """For each text the next tokens, at most as many as asked for; none where it has no idea."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass
class _Index:
    """Where each run of tokens was last seen, by its end; only runs that something follows."""

    ids: Sequence[int]
    seen: int = 0
    places: dict[tuple[int, ...], int] = field(default_factory=dict)


class NgramDrafter:
    """Looks up what followed the text's last tokens where they stood before: in the prompt, or in the text itself.

    Args:
        longest, shortest: how many last tokens must be found; the longest run that is found counts.

    Example:
        >>> NgramDrafter().guess([Guess(0, [5, 6, 7, 8, 9, 5, 6, 7], 2)])
        [[8, 9]]
    """

    def __init__(self, longest: int = 4, shortest: int = 3) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._indices: dict[int, _Index] = {}

    def guess(self, texts: Sequence[Guess]) -> list[list[int]]:
        """See `Drafter.guess`."""
        return [self._next(text) for text in texts]

    def _next(self, text: Guess) -> list[int]:
        index = self._indices.get(text.slot)
        if index is None or index.ids is not text.ids:
            index = self._indices[text.slot] = _Index(text.ids)
        ids = text.ids
        for end in range(index.seen, len(ids) - 1):
            for size in self._sizes:
                if size <= end + 1:
                    index.places[tuple(ids[end + 1 - size : end + 1])] = end + 1
        index.seen = max(index.seen, len(ids) - 1)
        for size in self._sizes:
            found = index.places.get(tuple(ids[-size:])) if size <= len(ids) else None
            if found is not None:
                return list(ids[found : found + text.most])
        return []

    def close(self) -> None:
        """See `Drafter.close`."""
        self._indices.clear()


class ModelDrafter:
    """Lets a smaller model of the same vocabulary write ahead, greedily, for all texts together.

    Args:
        slots: the smaller model, with as many slots as the larger one; closed with this.
        piece: most tokens of prompts that it reads before one step.

    Raises:
        NqEdgeError: NQ-OPTION when it is made for another vocabulary than `vocab_size`.
    """

    def __init__(self, slots: Slots, vocab_size: int, *, piece: int = 128) -> None:
        if slots.vocab_size != vocab_size:
            raise NqEdgeError(
                "NQ-OPTION",
                f"the draft model has {slots.vocab_size} tokens, the model has {vocab_size}.",
                "Use a draft model with the same tokenizer.",
            )
        self._slots, self._piece = slots, min(piece, slots.most_tokens)
        self._held: list[list[int]] = [[] for _ in range(slots.count)]

    def guess(self, texts: Sequence[Guess]) -> list[list[int]]:
        """See `Drafter.guess`; a prompt that is not read to its end gives none."""
        found: dict[int, list[int]] = {text.slot: [] for text in texts}
        left, room, feeds = {}, self._piece, {}
        for text in texts:
            limit = min(text.most, self._slots.max_context - len(text.ids))
            common = min(common_length(self._held[text.slot], list(text.ids)), len(text.ids) - 1)
            self._slots.truncate(text.slot, common)
            del self._held[text.slot][common:]
            new = list(text.ids[common : common + room])
            if limit < 1 or not new:
                continue
            room -= len(new)
            feeds[text.slot] = new
            left[text.slot] = limit if common + len(new) == len(text.ids) else 0
        while feeds:
            rows = [SlotRow(slot, new, logits=int(left[slot] > 0)) for slot, new in feeds.items()]
            logits = self._slots.forward(rows)
            for slot, new in feeds.items():
                self._held[slot] += new
            feeds = {}
            for row, scores in zip(rows, logits, strict=True):
                if row.logits:
                    token = int(np.argmax(scores[0]))
                    found[row.slot].append(token)
                    left[row.slot] -= 1
                    if left[row.slot]:
                        feeds[row.slot] = [token]
        return [found[text.slot] for text in texts]

    def close(self) -> None:
        """See `Drafter.close`."""
        self._slots.close()
