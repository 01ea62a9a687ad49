# SPDX-License-Identifier: Apache-2.0
"""Chats to prompts through a model's Jinja template, rendered as transformers renders it, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer
from ..system.files import path_inside
from .template_process import TemplateLimits, TemplateProcess

__all__ = ["ChatTemplate", "TemplateLimits", "load_chat_template"]

TEMPLATE_FILE = "chat_template.jinja"
#: The longest published templates have about 20,000 characters.
MAX_TEMPLATE_CHARACTERS = 1 << 20
#: Names that a message's reasoning goes by; templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template.

    It is compiled and rendered in a process of its own, which starts with the first chat (see `TemplateProcess`).
    Several threads may use it; one chat is rendered at a time.

    Args:
        source: Jinja text.
        special_tokens: names such as "bos_token" -> text, visible to the template.
        limits: what a rendering may take.

    Attributes:
        source: the Jinja text.

    Raises:
        NqEdgeError: NQ-TEMPLATE when it is too large.

    Example:
        >>> with ChatTemplate("{{ messages[0].content }}") as template:
        ...     template.render([{"role": "user", "content": "Hi"}])
        'Hi'
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, *, limits: TemplateLimits | None = None
    ) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise NqEdgeError(
                "NQ-TEMPLATE",
                f"the chat template has {len(source)} characters, the limit is {MAX_TEMPLATE_CHARACTERS}.",
            )
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._process = TemplateProcess(source, limits or TemplateLimits())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a chat.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: end with the mark that begins the assistant's answer.
            tools: JSON schemas of functions the model may call.
            **variables: further names for the template, such as enable_thinking.

        Raises:
            NqEdgeError: NQ-TEMPLATE when the template is not valid, fails, refuses the chat, or exceeds its limits.
        """
        if not messages:
            raise NqEdgeError("NQ-TEMPLATE", "the chat has no messages.", "Pass at least one message.")
        try:
            names = {
                **self._special_tokens,
                "tools": None if tools is None else _plain(tools),
                "documents": None,
                **{name: _plain(value) for name, value in variables.items()},
                "messages": [_message(message) for message in messages],
                "add_generation_prompt": bool(add_generation_prompt),
            }
        except RecursionError:
            raise NqEdgeError("NQ-TEMPLATE", "the chat's messages are nested too deeply.") from None
        return self._process.render(names)

    def start(self) -> None:
        """Start the process that renders, without waiting for it: the first chat need not wait then."""
        self._process.start()

    def close(self) -> None:
        """End the process that renders; another starts when it is needed."""
        self._process.close()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def load_chat_template(folder: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of a folder: chat_template.jinja, else the entry of tokenizer_config.json; None without either.

    Raises:
        NqEdgeError: NQ-TEMPLATE when it is unreadable or too large. Whether it is valid shows when it is rendered.
    """
    path = path_inside(Path(folder), TEMPLATE_FILE)
    source: Any
    if path.is_file():
        if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
            raise NqEdgeError("NQ-TEMPLATE", f"{path} is larger than any real chat template.")
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NqEdgeError("NQ-TEMPLATE", f"cannot read {path} ({error}).") from error
    else:
        source = tokenizer.config.get("chat_template")
        if isinstance(source, list):  # several named ones; transformers also takes the one called "default"
            named = {e.get("name"): e.get("template") for e in source if isinstance(e, dict)}
            source = named.get("default")
    return ChatTemplate(source, tokenizer.special_tokens) if isinstance(source, str) else None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no empty entries, and its reasoning under each name that is in use."""
    entry = {name: value for name, value in _plain(message).items() if value is not None}
    reasoning = next((entry[name] for name in _REASONING if name in entry), None)
    return entry if reasoning is None else {"thinking": reasoning, **entry, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A copy made of JSON types only, so that a template meets no object with methods of ours or the caller's."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
