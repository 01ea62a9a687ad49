# SPDX-License-Identifier: Apache-2.0
"""A model that is being served: what turns prompts into ids, its scheduler, and how it wants to be sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer
from ..runtimes.chat_template import ChatTemplate
from ..runtimes.sampling import SamplingConfig
from .answer import Answer
from .constraint import Constrainer
from .requests import Outcome, Request
from .statistics import Statistics
from .tools import ToolFormat, explained, find_format

__all__ = ["ModelSettings", "ServedModel", "Writes"]


class Writes(Protocol):
    """What writes texts: a `Scheduler`."""

    def submit(self, request: Request, *, notify: Callable[[], None] | None = None) -> Answer:
        """Begin a text."""
        ...

    def statistics(self) -> Statistics:
        """What was done so far."""
        ...

    def save_prefixes(self, path: Path) -> int:
        """Write the beginnings of texts that are kept; returns their tokens."""
        ...

    def load_prefixes(self, path: Path) -> int:
        """Take such beginnings; returns their tokens."""
        ...

    def close(self, *, drain: bool = False) -> None:
        """Take no more; with `drain`, finish what was taken."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is known of a model beside its weights.

    Attributes:
        name: as clients call it. `aliases`: what they may call it besides.
        vocab_size: width of its logits.
        max_context: most tokens of prompt and text together.
        eos_ids: ids that end a text.
        sampling: where a request does not say.
        kernel, device: what computes, for people.
        created: seconds since 1970 when it was opened.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vocab_size: int
    max_context: int
    eos_ids: frozenset[int] = frozenset()
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    kernel: str = "none"
    device: str = "cpu"
    created: int = field(default_factory=lambda: int(time.time()))


class ServedModel:
    """A model behind a server or a chat. Several threads may use it; it closes what it was given.

    Args:
        writer: its scheduler.
        tokenizer: the model's.
        settings: what else is known.
        chat_template: needed for chats only.
    """

    def __init__(
        self,
        writer: Writes,
        tokenizer: Tokenizer,
        *,
        settings: ModelSettings,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.writer, self.tokenizer, self.settings = writer, tokenizer, settings
        self.chat_template = chat_template
        #: Told of every text that was finished for a server's client.
        self.observe: Callable[[Outcome], None] = lambda _outcome: None
        self.tool_format: ToolFormat = find_format(None if chat_template is None else chat_template.source)
        self.constrainer = Constrainer(tokenizer, settings.vocab_size, settings.eos_ids)
        #: text -> id of the special tokens, which are never part of a text.
        self.special = {text: index for index, text in tokenizer.special_texts.items()}

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain prompt; BOS alone for an empty one.

        Raises:
            NqEdgeError: NQ-PROMPT for an empty text where the model has no BOS token.
        """
        ids = self.tokenizer.encode(text)
        bos = self.tokenizer.token_id("bos_token")
        if not ids and bos is not None:
            return [bos]
        if not ids:
            raise NqEdgeError("NQ-PROMPT", "the prompt is empty and the model has no BOS token.", "Pass a text.")
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation that the assistant is to continue.

        Args:
            messages: as chat templates take them: "role", "content", "tool_calls" and so on.
            functions: what the model may call; each with "name", "description" and "parameters".
            variables: further names for the template.

        Raises:
            NqEdgeError: NQ-TEMPLATE for a model without template, or a chat that it refuses.
        """
        if self.chat_template is None:
            raise NqEdgeError("NQ-TEMPLATE", "the model has no chat template.", "Use plain completions.")
        tools = None
        if self.tool_format.shown:
            tools = [{"type": "function", "function": dict(function)} for function in functions] or None
        elif functions or any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
            messages = explained(messages, functions, self.tool_format)
        text = self.chat_template.render(messages, tools=tools, **(variables or {}))
        return self.tokenizer.encode(text, add_special_tokens=False)

    def token_text(self, index: int) -> str:
        """How one token reads in the middle of a text; U+FFFD for a part of a character."""
        text = self.tokenizer.decode([index], skip_special_tokens=False)
        stored = self.tokenizer.token(index) or ""
        return f" {text}" if stored.startswith("\u2581") and not text.startswith(" ") else text

    def close(self, *, drain: bool = False) -> None:
        """Give back all memory; with `drain`, after the texts that are being written."""
        self.writer.close(drain=drain)
        self.constrainer.close()
        if self.chat_template is not None:
            self.chat_template.close()

    def __enter__(self) -> ServedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
