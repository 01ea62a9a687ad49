# SPDX-License-Identifier: Apache-2.0
"""A conversation: its messages, the answer that is being written, and what is dropped when the context is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...runtimes.options import check_whole
from ...runtimes.sampling import SamplingConfig
from ...system.files import write_json
from ..answer import Answer
from ..constraint import Grammar
from ..model import ServedModel
from ..requests import Outcome, Request

__all__ = ["ChatOptions", "ChatSession", "Turn"]


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation goes.

    Attributes:
        sampling: how answers are chosen; None takes the model's own configuration.
        system: the system message to begin with.
        max_new_tokens: most tokens of an answer.
        grammar: what every answer keeps to.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of its range.
    """

    sampling: SamplingConfig | None = None
    system: str | None = None
    max_new_tokens: int = 1024
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, low=1, high=1 << 31)


class Turn(Iterator[str]):
    """An answer as it comes; leaving its `with` block stops it, and what was written stays in the conversation.

    Attributes:
        dropped: messages that had to leave the conversation before, because the context was full.
        outcome: the finished answer, once the pieces are used up.
    """

    def __init__(self, session: ChatSession, answer: Answer, dropped: int) -> None:
        self._session, self._answer, self.dropped = session, answer, dropped
        self._pieces: list[str] = []
        self._open = True
        self.outcome: Outcome | None = None

    def __next__(self) -> str:
        for piece in self._answer:
            if piece.text:
                self._pieces.append(piece.text)
                return piece.text
        self.outcome = self._answer.outcome
        self._end()
        raise StopIteration

    def close(self) -> None:
        """Stop the answer; nothing happens when it is finished."""
        self._answer.close()
        self._end()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._session.end_turn("".join(self._pieces), self.outcome)


@dataclass
class _Totals:
    """Counts over the conversation."""

    answers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    last: Outcome | None = field(default=None)


class ChatSession:
    """A conversation with an opened model, which the caller closes.

    Args:
        model: with a chat template.
        options: how it goes.
    """

    def __init__(self, model: ServedModel, options: ChatOptions | None = None) -> None:
        self._model, self._options = model, options or ChatOptions()
        self.system = self._options.system
        self.messages: list[dict[str, Any]] = []
        self._totals = _Totals()
        self._used = 0

    def ask(self, text: str) -> Turn:
        """Say something; the answer comes as it is written.

        Where the context is too full for the conversation and a fair answer, the oldest turns are dropped whole.

        Raises:
            NqEdgeError: NQ-PROMPT when this message alone does not fit, NQ-TEMPLATE when the template refuses the chat;
                the conversation is as before then.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")  # a pipe may bring what is no character
        self.messages.append({"role": "user", "content": text})
        try:
            return self._begin()
        except BaseException:
            self.messages.pop()
            raise

    def retry(self) -> Turn:
        """Write the last answer again; with a seed of its own, so with other words where it is sampled.

        Raises:
            NqEdgeError: NQ-PROMPT when nothing was said yet.
        """
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            raise NqEdgeError("NQ-PROMPT", "there is nothing to try again.", "Say something first.")
        return self._begin()

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages.clear()
        self._used = 0

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"model", "messages"}.

        Raises:
            NqEdgeError: NQ-OUTPUT when there is such a file already, or it cannot be written.
        """
        if path.exists() or path.is_symlink():
            raise NqEdgeError("NQ-OUTPUT", f"{path} exists already.", "Choose another name.")
        content = {"model": self._model.settings.name, "messages": self._conversation()}
        try:
            write_json(path, content)
        except OSError as error:
            raise NqEdgeError("NQ-OUTPUT", f"cannot write {path}: {error.strerror}.", "Choose another.") from error

    def statistics(self) -> dict[str, Any]:
        """Counts and times: of the last answer, of all, and how full the context is."""
        last, totals = self._totals.last, self._totals
        found: dict[str, Any] = {
            "answers": totals.answers,
            "prompt_tokens": totals.prompt_tokens,
            "reused_tokens": totals.reused_tokens,
            "new_tokens": totals.new_tokens,
            "context_tokens": self._used,
            "max_context": self._model.settings.max_context,
        }
        if last is not None:
            found["last"] = {
                "prompt_tokens": last.prompt_tokens,
                "reused_tokens": last.reused_tokens,
                "new_tokens": len(last.ids),
                "ttft_s": last.ttft_s,
                "decode_tps": (len(last.ids) - 1) / last.decode_s if last.decode_s > 0 else 0.0,
                "finish_reason": last.finish_reason,
            }
        return found

    def end_turn(self, text: str, outcome: Outcome | None) -> None:
        """Take an answer into the conversation; called by its `Turn`."""
        self.messages.append({"role": "assistant", "content": text})
        self._totals.answers += 1
        if outcome is not None:
            self._totals.last = outcome
            self._totals.prompt_tokens += outcome.prompt_tokens
            self._totals.reused_tokens += outcome.reused_tokens
            self._totals.new_tokens += len(outcome.ids)
            self._used = outcome.prompt_tokens + len(outcome.ids)

    def _begin(self) -> Turn:
        options, limit = self._options, self._model.settings.max_context
        # A quarter of the context for the answer: who drops turns drops enough of them for several answers.
        room = min(options.max_new_tokens, max(1, limit // 4))
        kept = list(self.messages)
        ids = self._encoded(kept)
        while len(ids) + room > limit:
            shorter = _without_oldest_turn(kept)
            if not shorter:
                break
            kept = shorter
            ids = self._encoded(kept)
        if len(ids) > limit:
            raise NqEdgeError(
                "NQ-PROMPT",
                f"the message has {len(ids)} tokens, the context holds {limit}.",
                "Shorten it, or open the model with a larger --max-context.",
            )
        mask = None if options.grammar is None else self._model.constrainer.mask(options.grammar)
        request = Request(
            ids=ids,
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling or self._model.settings.sampling,
            mask=mask,
        )
        answer = self._model.writer.submit(request)
        dropped, self.messages[:] = len(self.messages) - len(kept), kept
        return Turn(self, answer, dropped)

    def _encoded(self, messages: list[dict[str, Any]]) -> list[int]:
        return self._model.encode_chat(self._conversation(messages))

    def _conversation(self, messages: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *(self.messages if messages is None else messages)]


def _without_oldest_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages from the second question on; none when there is but one."""
    later = [number for number, message in enumerate(messages) if number and message["role"] == "user"]
    return messages[later[0] :] if later else []
