# SPDX-License-Identifier: Apache-2.0
"""What the APIs say about tokens: log-probabilities, reasons why a text ended, and counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..model import ServedModel
from ..requests import Outcome, TokenChoice

__all__ = ["finish_reason", "legacy_logprobs", "token_entries", "usage_of"]

#: What OpenAI's API writes for a token that cannot come: JSON has no infinity.
_NEVER = -9999.0


def finish_reason(outcome: Outcome) -> str:
    """ "length" where the text was cut, else "stop"."""
    return "length" if outcome.finish_reason == "length" else "stop"


def usage_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of tokens; the prompt of several texts counts once."""
    prompt = outcomes[0].prompt_tokens if outcomes else 0
    new = sum(len(outcome.ids) for outcome in outcomes)
    cached = outcomes[0].reused_tokens if outcomes else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_entries(model: ServedModel, tokens: Iterable[TokenChoice]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities, as chats and responses have them."""
    return [
        {
            **_entry(model, token.id, token.logprob),
            "top_logprobs": [_entry(model, index, value) for index, value in token.top],
        }
        for token in tokens
    ]


def legacy_logprobs(model: ServedModel, tokens: Sequence[TokenChoice], offset: int) -> dict[str, Any]:
    """Tokens with their log-probabilities, as plain completions have them.

    Args:
        model: what they are of.
        tokens: in order.
        offset: characters of text before the first one.
    """
    texts = [model.token_text(token.id) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{model.token_text(index): _finite(value) for index, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _entry(model: ServedModel, index: int, value: float | None) -> dict[str, Any]:
    text = model.token_text(index)
    whole = "\ufffd" not in text
    return {"token": text, "logprob": _finite(value), "bytes": list(text.encode()) if whole else None}


def _finite(value: float | None) -> float:
    return _NEVER if value is None or not value > _NEVER else value
