# SPDX-License-Identifier: Apache-2.0
"""What a scheduler has done so far, for /metrics and /stats."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters", "Statistics"]


@dataclass
class Counters:
    """What only grows.

    Attributes:
        requests: taken. `finished`, `cancelled`, `failed`: how they ended. `refused`: not taken, the queue was full.
        prompt_tokens: of all prompts. `reused_tokens`: of these, not computed again. `new_tokens`: written.
        drafted, accepted: tokens guessed ahead, and those that held.
        steps: calls of the model. `step_s`: seconds in them.
        evicted_tokens: kept tokens that were given up to make room.
    """

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    step_s: float = 0.0
    evicted_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counters since the start, and the present state.

    Attributes:
        counters: a copy.
        waiting: requests in the queue.
        active: texts that are being written.
        slots: all slots.
        cache_tokens: tokens whose keys and values are held, kept prefixes included.
        cache_limit: most of them.
        cache_bytes: memory allocated for them.
    """

    counters: Counters
    waiting: int
    active: int
    slots: int
    cache_tokens: int
    cache_limit: int
    cache_bytes: int
