# SPDX-License-Identifier: Apache-2.0
"""How texts are scheduled; checked when made, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtimes.options import check_whole

__all__ = ["SchedulerOptions"]


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """How texts share a model.

    Attributes:
        queue: most requests that wait for a slot; more are refused with `BusyError`.
        chunk: most tokens of prompts that one step computes while other texts are being written: what they wait.
        cache_tokens: most tokens whose keys and values are kept, in all slots together; None for all that fit.
        keep_prefixes: keep the tokens of finished texts for requests that begin like them.
        draft: most tokens guessed ahead, where the model's steps are exact and guesses pay; 0 guesses none.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of its range.

    Example:
        >>> SchedulerOptions(queue=8).chunk
        128
    """

    queue: int = 64
    chunk: int = 128
    cache_tokens: int | None = None
    keep_prefixes: bool = True
    draft: int = 8

    def __post_init__(self) -> None:
        check_whole("queue", self.queue, low=0, high=1 << 20)
        check_whole("chunk", self.chunk, low=1, high=1 << 16)
        check_whole("draft", self.draft, low=0, high=64)
        if self.cache_tokens is not None:
            check_whole("cache_tokens", self.cache_tokens, low=1, high=1 << 40)
