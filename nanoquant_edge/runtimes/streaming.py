# SPDX-License-Identifier: Apache-2.0
"""Token ids to text as they come: whole characters only, and never a part of a stop string.

The pieces of a `TextStream` joined are exactly the decoding of all ids at once. A character may span several tokens,
so text is held back while its last character is unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer

__all__ = ["StopMatcher", "TextStream", "stop_strings"]

REPLACEMENT = "\ufffd"
#: Code points of the characters that stand for special tokens, and how many there are.
_FIRST_MARK, _MARKS = 0xD800, 0x800
#: Vocabulary entry of a single byte in tokenizers with byte fallback (SentencePiece's notation).
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextStream:
    """Incremental decoding.

    Only the tokens since the last complete character are decoded again, behind one earlier token as context:
    decoders of the SentencePiece kind treat the first token of a text differently (they strip its space).

    Args:
        tokenizer: the model's.
        skip_special_tokens: leave special tokens such as end-of-turn marks out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []
        self._sent = 0

    def push(self, index: int) -> str:
        """Add one id; returns the text that became final, often one word, sometimes nothing."""
        token = self._tokenizer.token(index)
        if index in self._hidden or token is None:
            return ""
        self._pending.append(index)
        if self._byte_fallback(token):
            return ""  # such a run decodes as a whole: one bad byte later spoils the characters before it
        text = self._text()
        unfinished = text.endswith(REPLACEMENT)
        piece = text[self._sent : -1 if unfinished else None]
        self._sent += len(piece)
        if not unfinished:
            self._context, self._pending, self._sent = self._pending[-1:], [], 0
            self._context_text = self._decode(self._context)
        return piece

    def flush(self) -> str:
        """The rest, at the end of the text: unfinished characters become U+FFFD as in any decoding."""
        piece = self._text()[self._sent :] if self._pending else ""
        self._context, self._context_text, self._pending, self._sent = [], "", [], 0
        return piece

    def _byte_fallback(self, token: str) -> bool:
        # In a byte-level vocabulary the same six characters would be ordinary text.
        return _BYTE_TOKEN.fullmatch(token) is not None and self._decode([self._pending[-1]]) != token

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _text(self) -> str:
        return self._decode(self._context + self._pending)[len(self._context_text) :]


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a caller may give them: several, one, or None; empty ones are left out.

    Raises:
        NqEdgeError: NQ-OPTION for anything else.
    """
    given = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise NqEdgeError("NQ-OPTION", f"stop must be a text or a list of texts, got {stop!r}.")
    return tuple(one for one in given if one)


class StopMatcher:
    """Finds stop strings in text that arrives in pieces.

    The text ends before the stop string that is complete first (of two complete at the same character, the one that
    begins first), however the pieces are cut.

    Special tokens are not part of the text, but a stop string may name them: `mark` gives a character that stands for
    such a token, to be pushed in its place; it is found as a whole only, and never shown.

    Args:
        stops: stop strings; empty ones are ignored.
        special_tokens: id -> name of the special tokens that the text leaves out.
    """

    def __init__(self, stops: Sequence[str], special_tokens: Mapping[int, str] | None = None) -> None:
        stops = [stop for stop in stops if stop]
        named = {i: name for i, name in (special_tokens or {}).items() if any(name in stop for stop in stops)}
        # Lone surrogates are no characters: no decoded text holds one.
        self._marks = {i: chr(_FIRST_MARK + number) for number, i in enumerate(sorted(named)[:_MARKS])}
        self._hidden = {ord(mark): None for mark in self._marks.values()}
        self._stops = tuple(dict.fromkeys([*stops, *(self._marked(stop, named) for stop in stops)]))
        self._held = ""
        self.stopped = False

    def mark(self, index: int) -> str:
        """What to push for an id that the text leaves out: a character when a stop string names it, else nothing."""
        return self._marks.get(index, "")

    def push(self, piece: str) -> str:
        """Add text; returns what may be shown. After a match `stopped` is true and nothing more comes out."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]].translate(self._hidden)
        shown = len(text) - self._possible_start(text)
        self._held = text[shown:]
        return text[:shown].translate(self._hidden)

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest.translate(self._hidden)

    def _marked(self, stop: str, named: Mapping[int, str]) -> str:
        """A stop string with marks for the special tokens in it, the longest names first."""
        for index in sorted(self._marks, key=lambda index: -len(named[index])):
            stop = stop.replace(named[index], self._marks[index])
        return stop

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
