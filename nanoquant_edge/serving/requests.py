# SPDX-License-Identifier: Apache-2.0
"""What is asked of a scheduler, and what comes back: requests, pieces of text with their tokens, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import NqEdgeError
from ..runtimes.mask import TokenMask
from ..runtimes.options import check_whole
from ..runtimes.sampling import SamplingConfig

__all__ = ["MAX_LOGPROBS", "BusyError", "Outcome", "Piece", "Request", "TokenChoice", "TokenMask"]

#: Most alternatives of a token whose probabilities may be asked for.
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to be written.

    Attributes:
        ids: the prompt's token ids, at least one.
        max_new_tokens: most new tokens; no more are written than the context has room for.
        sampling: how tokens are chosen; greedy by default.
        stop: texts that end the answer and are not part of it.
        logprobs: how many of the likeliest alternatives come with each token, 0 for the token's own log-probability
            alone; None for nothing.
        mask: what the text must keep to.
        ignore_eos: go on after an end-of-sequence id (for measurements).

    Raises:
        NqEdgeError: NQ-OPTION for a value out of its range, NQ-PROMPT for an empty prompt.

    Example:
        >>> Request(ids=[1, 5, 7], max_new_tokens=8).logprobs is None
        True
    """

    ids: Sequence[int]
    max_new_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    mask: TokenMask | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise NqEdgeError("NQ-PROMPT", "the prompt has no tokens.", "Pass a text.")
        check_whole("max_new_tokens", self.max_new_tokens, low=1, high=1 << 31)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)


@dataclass(frozen=True)
class TokenChoice:
    """A token that was chosen.

    Attributes:
        id: its id.
        logprob: natural logarithm of its probability by the model alone, before any filter; None if not asked for.
        top: the likeliest tokens with theirs, best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step brought to a text.

    Attributes:
        text: what may be shown now: whole characters, nothing of a stop string; may be empty while it is undecided.
        tokens: the tokens of this step, one or more; none in a last piece that only shows what was held back.
    """

    text: str
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A finished text.

    Attributes:
        text: all of it.
        ids: all new ids, the end-of-sequence id included.
        finish_reason: "eos" (the model ended it), "stop" (a stop string or a complete mask), "length" or "cancelled".
        prompt_tokens: tokens of the prompt.
        reused_tokens: of these, how many were there from earlier requests.
        drafted, accepted: tokens that were guessed ahead, and those that held.
        queue_s: seconds in the queue.
        ttft_s: seconds from `submit` to the first token; 0 without one.
        decode_s: seconds from the first token to the last.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0


class BusyError(NqEdgeError):
    """Too many requests wait already, or no more are taken.

    Attributes:
        retry_after_s: after how many seconds to try again, by the queue's present pace.
        closing: whether the scheduler is going away, so that another try is of no use here.
    """

    def __init__(self, message: str, *, retry_after_s: float, closing: bool = False) -> None:
        super().__init__("NQ-BUSY", message, f"Try again in {max(1, round(retry_after_s))} s.")
        self.retry_after_s, self.closing = retry_after_s, closing
