# SPDX-License-Identifier: Apache-2.0
"""Calibration windows of conversations: instructions, and the answers that the dense model itself gives to them.

An instruct model that is calibrated on an encyclopedia forgets how to answer: at one bit a 0.5B model then ends 28 % of
its answers instead of 78 % (docs/notes/quality.md). So half of its windows hold chats in its own format.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import NqEdgeError, first_line
from ...system.progress import Progress
from .instructions import follow_ups, instructions
from .writing import Script, Turn, Writing, end_tokens, write

__all__ = ["conversation_windows", "has_chat_format"]

#: Answers are sampled as a chat would sample them.
_TEMPERATURE = 0.8
_LONGEST_ANSWER = 256
#: One conversation in so many goes on with a second question, where the answer has ended by itself.
_SECOND_QUESTION_EVERY = 4
#: Tokens that a conversation can look back to; a second question is asked only where its answer fits too.
_ROOM = 640
#: Few windows are written as up to four pieces each, so that a GPU has about so many rows, none of fewer tokens.
_ROWS, _PIECE = 128, 512
#: What stands for an answer when a template is asked what comes behind one.
_ANSWER = "\u2042answer\u2042"

Messages = list[dict[str, str]]


def has_chat_format(tokenizer: Any) -> bool:
    """Whether a tokenizer knows how its model's chats are written."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation_windows(
    model: Any, tokenizer: Any, windows: int, length: int, *, seed: int, text: str | None, progress: Progress
) -> Tensor:
    """Windows of conversations, each beginning with the beginning of one; the last one in a window is cut off.

    Fewer than 128 windows of 2048 tokens are put together from two or four pieces, each of which ends so.

    Args:
        model: the dense transformers causal language model, on its device.
        tokenizer: its transformers tokenizer, with a chat template.
        windows: how many windows.
        length: tokens of a window.
        seed: random seed of the instructions and the answers.
        text: calibration text that some of the instructions are about, or none.
        progress: told how many tokens there are.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: NQ-TEMPLATE when the chat template cannot be rendered.
    """
    pieces = 1
    while windows * pieces < _ROWS and length % (2 * pieces) == 0 and length // (2 * pieces) >= _PIECE:
        pieces *= 2
    chats = _Chats(model, tokenizer, min(_LONGEST_ANSWER, max(8, length // 2)), text)
    total = windows * length

    def told(tokens: int) -> None:
        progress(min(1.0, tokens / total), f"the model answers instructions, {tokens} of {total} tokens")

    writing = Writing(
        length=length // pieces, temperature=_TEMPERATURE, seed=seed, ends=chats.ends, slots=_ROOM, told=told
    )
    # A seed of a row's own: what it asks does not depend on how many rows there are.
    rows = write(model, [chats.script(f"{seed} {row}") for row in range(windows * pieces)], writing)
    progress(1.0, f"{windows} windows of conversations")
    return torch.tensor(rows, dtype=torch.int64).view(windows, length)


class _Chats:
    """How a model's chats are written, as scripts of rows."""

    def __init__(self, model: Any, tokenizer: Any, longest_answer: int, text: str | None) -> None:
        self._tokenizer, self._longest, self._text = tokenizer, longest_answer, text
        self.ends = end_tokens(model, tokenizer)
        self._follow_ups = follow_ups()
        self._ending = self._behind_an_answer(None)

    def script(self, seed: str) -> Script:
        """Conversations without end."""
        drawn = random.Random(seed)
        turns = instructions(drawn.getrandbits(63), self._text)
        while True:
            prompt = self._rendered([{"role": "user", "content": next(turns)}])
            answer = yield Turn(prompt, self._longest)
            if not answer or answer[-1] not in self.ends:
                continue  # it was cut off, and nothing goes on from there
            if drawn.randrange(_SECOND_QUESTION_EVERY) == 0:
                question = self._behind_an_answer(drawn.choice(self._follow_ups))
                if question and len(prompt) + len(answer) + len(question) + self._longest <= _ROOM:
                    answer = yield Turn(question, self._longest, begins=False)
                    if not answer or answer[-1] not in self.ends:
                        continue
            yield Turn(self._ending, 0, begins=False)

    def _rendered(self, chat: Messages) -> list[int]:
        """A chat up to where the model's answer begins."""
        try:
            ids = self._tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is a program of its own, which raises what it likes
            raise NqEdgeError("NQ-TEMPLATE", f"the model's chat template fails: {first_line(error)}.") from error
        if not len(ids):
            raise NqEdgeError("NQ-TEMPLATE", "the model's chat template makes nothing of a user's turn.")
        return [int(token) for token in ids]

    def _behind_an_answer(self, question: str | None) -> Sequence[int]:
        """What a template puts behind the token that ends an answer: a line break, or all of a further question."""
        chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
        if question is not None:
            chat.append({"role": "user", "content": question})
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=question is not None)
        except Exception:  # a template that takes no finished answers has nothing behind them
            return []
        ids = self._tokenizer(text.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
        return list(ids[1:]) if ids and ids[0] in self.ends else []
