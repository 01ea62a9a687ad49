# SPDX-License-Identifier: Apache-2.0
"""Plain instructions that a person could type into a chat, for calibrating models that answer them.

A model is asked what people ask: forms of requests crossed with everyday subjects, and requests about a passage of the
calibration text. None of the prompts that benchmarks/answers.py measures with is among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["follow_ups", "instructions"]

_FILE = Path(__file__).with_suffix(".json")
_PASSAGE_WORDS = 80


def _phrases() -> dict[str, list[str]]:
    """Forms of requests ("about", with a gap for one of the "subjects"), "plain" ones, and "passage" ones."""
    phrases: dict[str, list[str]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return phrases


def follow_ups() -> list[str]:
    """What a person says after an answer."""
    return _phrases()["follow_ups"]


def instructions(seed: int, text: str | None = None) -> Iterator[str]:
    """User turns without end, in an order that the seed decides.

    Args:
        seed: random seed of the order.
        text: one in five turns is about a passage of 80 words of it, where it is given.

    Example:
        >>> next(instructions(0)) == next(instructions(0))
        True
    """
    drawn = random.Random(seed)
    phrases = _phrases()
    words = (text or "").split()
    while True:
        kind = drawn.random()
        if kind < 0.2 and len(words) > _PASSAGE_WORDS:
            start = drawn.randrange(len(words) - _PASSAGE_WORDS)
            yield drawn.choice(phrases["passage"]).format(" ".join(words[start : start + _PASSAGE_WORDS]))
        elif kind < 0.4:
            yield drawn.choice(phrases["plain"])
        else:
            yield drawn.choice(phrases["about"]).format(drawn.choice(phrases["subjects"]))
