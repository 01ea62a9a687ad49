# SPDX-License-Identifier: Apache-2.0
"""The assistant's answer as it comes: text, calls of functions, and the end, for chats and responses alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ..model import ServedModel
from ..requests import Outcome, Piece, TokenChoice
from ..tools import Call, CallReader
from .conversation import Tools
from .entries import finish_reason
from .texts import Texts

__all__ = ["AnswerEnd", "AnswerPart", "answer_parts"]


@dataclass(frozen=True)
class AnswerPart:
    """A text or a call, and the tokens that it came with."""

    content: str | Call
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer: its outcome, and "stop", "length" or "tool_calls"."""

    outcome: Outcome
    reason: str


async def answer_parts(
    model: ServedModel, texts: Texts, *, tools: Tools, with_tokens: bool
) -> AsyncIterator[tuple[int, AnswerPart | AnswerEnd]]:
    """(number of the answer, what came) as it comes.

    Args:
        model: what writes.
        texts: what is being written.
        tools: what may be called.
        with_tokens: give a part for every token, also where no text became final.
    """
    readers: dict[int, CallReader] = {}
    called: set[int] = set()
    mark = model.special.get(model.tool_format.begin)
    async for number, part in texts:
        if not tools.functions:
            if isinstance(part, Outcome):
                yield number, AnswerEnd(part, finish_reason(part))
            elif part.text or with_tokens:
                yield number, AnswerPart(part.text, part.tokens)
            continue
        reader = readers.setdefault(number, CallReader(model.tool_format, tools.names))
        found = reader.flush() if isinstance(part, Outcome) else reader.push(_shown(part, mark, model))
        tokens: Sequence[TokenChoice] = () if isinstance(part, Outcome) else part.tokens
        if not found and tokens and with_tokens:
            found = [""]
        for entry in found:
            if isinstance(entry, Call):
                called.add(number)
            yield number, AnswerPart(entry, tuple(tokens))
            tokens = ()
        if isinstance(part, Outcome):
            yield number, AnswerEnd(part, "tool_calls" if number in called else finish_reason(part))


def _shown(piece: Piece, mark: int | None, model: ServedModel) -> str:
    """A piece's text, with the mark that begins calls where that is a special token, which no text shows."""
    if mark is not None and any(token.id == mark for token in piece.tokens):
        return model.tool_format.begin + piece.text
    return piece.text
