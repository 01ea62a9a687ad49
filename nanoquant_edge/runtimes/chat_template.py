# SPDX-License-Identifier: Apache-2.0
"""Chats to prompts through a model's Jinja template, rendered as transformers renders it.

A template comes with the model, so it is a stranger's program. It runs in Jinja's immutable sandbox (no attribute
that begins with an underscore, no change of its arguments), sees plain data only, and is ended when it takes too long,
writes too much or takes too much memory.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer
from ..system.files import path_inside

__all__ = ["ChatTemplate", "load_chat_template"]

TEMPLATE_FILE = "chat_template.jinja"
#: The longest published templates have about 20,000 characters.
MAX_TEMPLATE_CHARACTERS = 1 << 20
#: A context of 128 k tokens is about half a million characters.
MAX_OUTPUT_CHARACTERS = 8 << 20
MAX_SECONDS = 5.0
#: Address space a render may add to the process.
MAX_EXTRA_BYTES = 512 << 20
#: File name that Jinja gives to the Python code it makes from a string.
_TEMPLATE_CODE = "<template>"
#: Names that a message's reasoning goes by; templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        special_tokens: names such as "bos_token" -> text, visible to the template.

    Raises:
        NqEdgeError: NQ-TEMPLATE when it is not valid or too large.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise NqEdgeError(
                "NQ-TEMPLATE",
                f"the chat template has {len(source)} characters, the limit is {MAX_TEMPLATE_CHARACTERS}.",
            )
        self._special_tokens = dict(special_tokens or {})
        with _bounded():  # Jinja computes constant expressions while it compiles
            self._template = _environment().from_string(source)

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
            NqEdgeError: NQ-TEMPLATE when the template fails, refuses the chat, or exceeds its limits.
        """
        if not messages:
            raise NqEdgeError("NQ-TEMPLATE", "the chat has no messages.", "Pass at least one message.")
        names = {
            **self._special_tokens,
            "tools": None if tools is None else _plain(tools),
            "documents": None,
            **{name: _plain(value) for name, value in variables.items()},
            "messages": [_message(message) for message in messages],
            "add_generation_prompt": bool(add_generation_prompt),
        }
        pieces, size = [], 0
        with _bounded():
            for piece in self._template.generate(names):
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise _Exceeded(f"wrote more than {MAX_OUTPUT_CHARACTERS} characters")
                pieces.append(piece)
            return "".join(pieces)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no empty entries, and its reasoning under each name that is in use."""
    entry = {name: value for name, value in _plain(message).items() if value is not None}
    reasoning = next((entry[name] for name in _REASONING if name in entry), None)
    return entry if reasoning is None else {"thinking": reasoning, **entry, "reasoning_content": reasoning}


def load_chat_template(folder: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of a folder: chat_template.jinja, else the entry of tokenizer_config.json; None without either.

    Raises:
        NqEdgeError: NQ-TEMPLATE when it is unreadable or not valid.
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


class _Exceeded(BaseException):
    """A limit was hit. No Exception, so that no filter of Jinja's swallows it."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Run a template's code under the limits; every failure becomes an NqEdgeError."""
    deadline = time.monotonic() + MAX_SECONDS
    previous = sys.gettrace()

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        # Called for each function call of this thread and each line of the template: from here a loop can be left.
        if time.monotonic() > deadline:
            raise _Exceeded(f"ran longer than {MAX_SECONDS:g} s")
        return watch if frame.f_code.co_filename == _TEMPLATE_CODE else None

    try:
        with _memory_limit(MAX_EXTRA_BYTES):
            sys.settrace(watch)
            try:
                yield
            finally:
                sys.settrace(previous)
    except _Exceeded as error:
        raise NqEdgeError("NQ-TEMPLATE", f"the chat template {error}.") from None
    except MemoryError:
        raise NqEdgeError("NQ-TEMPLATE", f"the chat template took more than {MAX_EXTRA_BYTES >> 20} MiB.") from None
    except NqEdgeError:
        raise
    except Exception as error:  # whatever a template makes Python raise is a fault of the template
        reason = str(error) or type(error).__name__
        raise NqEdgeError("NQ-TEMPLATE", f"the chat template cannot be rendered: {reason}") from error


@contextlib.contextmanager
def _memory_limit(extra: int) -> Iterator[None]:
    """Cap the process's address space for a moment, where the system can (Linux)."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one read, no path object needed
            used = int(file.read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + extra
        unlimited = resource.RLIM_INFINITY
        fits = (soft == unlimited or limit < soft) and (hard == unlimited or limit < hard)
        if fits:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        if fits:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_make_dict, namespace=_Namespace
    )
    return environment


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is rendered and nothing else."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja reads

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block's body in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, closed for names that begin with an underscore."""

    def __init__(self, *arguments: Any, **names: Any) -> None:
        for name in dict(*arguments, **names):
            _Namespace._refuse(name)  # the instance answers only for what the template stored
        super().__init__(*arguments, **names)

    @staticmethod
    def _refuse(name: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not set the attribute {name!r}")

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._refuse(name)
        super().__setitem__(name, value)


def _make_dict(*arguments: Any, **names: Any) -> dict[Any, Any]:
    return dict(*arguments, **names)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


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
