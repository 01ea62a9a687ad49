# SPDX-License-Identifier: Apache-2.0
"""The terminal of a chat: lines in, pieces out, and what an interrupt does.

prompt_toolkit edits lines and keeps their history where it is installed (extra `[chat]`) and both ends are a terminal
that can move its cursor; otherwise lines are read as they come. Answers go to standard output, everything else to
standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from ..errors import NqEdgeError
from ..serving.chat import ChatSession, Leave, Turn, run_command

__all__ = ["Terminal", "converse"]

#: Most characters of a message; a wrong file at the input is noticed before it is tokenized.
_MOST_CHARACTERS = 1 << 22


class Terminal:
    """Reads messages and shows answers.

    Args:
        name: of the model, for the greeting.
    """

    def __init__(self, name: str) -> None:
        self.interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self._ask = self._line_reader()
        if self.interactive:
            self.note(f"{shown(name)} · /help lists the commands, Ctrl-D leaves")

    def read(self) -> str:
        """The next message; a line that ends with a backslash goes on in the next one.

        Raises:
            EOFError: there are no more.
            NqEdgeError: NQ-PROMPT for one that is too long or not text.
        """
        lines: list[str] = []
        while True:
            try:
                line = self._ask("> " if not lines else "… ")
            except UnicodeDecodeError as error:
                raise NqEdgeError("NQ-PROMPT", f"the input is not text ({error.reason}).", "Convert it.") from error
            lines.append(line.removesuffix("\\"))
            if sum(map(len, lines)) > _MOST_CHARACTERS:
                raise NqEdgeError("NQ-PROMPT", f"a message has more than {_MOST_CHARACTERS} characters.")
            if not line.endswith("\\"):
                return "\n".join(lines).strip()

    def show(self, text: str) -> None:
        """Print a piece of an answer."""
        click.echo(shown(text), nl=False)
        sys.stdout.flush()

    def end(self) -> None:
        """End an answer."""
        click.echo()

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        click.echo(text, err=True)

    def _line_reader(self) -> Callable[[str], str]:
        if self.interactive and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown"):
            try:
                from prompt_toolkit import PromptSession
            except ImportError:
                pass
            else:
                session: Any = PromptSession()
                return lambda mark: str(session.prompt(mark))
        return self._plain_line

    def _plain_line(self, mark: str) -> str:
        if self.interactive:
            click.echo(mark, nl=False, err=True)
        line = "" if sys.stdin is None else sys.stdin.readline(_MOST_CHARACTERS + 2)
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")


def converse(session: ChatSession, terminal: Terminal) -> None:
    """Go on until the input ends or the user leaves; an interrupt outside of an answer means to leave, too.

    Raises:
        NqEdgeError: what went wrong, where nobody is at the terminal to do something about it.
    """
    try:
        _converse(session, terminal)
    except KeyboardInterrupt:
        if not terminal.interactive:
            raise
        terminal.note("")


def _converse(session: ChatSession, terminal: Terminal) -> None:
    while True:
        try:
            text = terminal.read()
        except EOFError:
            if terminal.interactive:
                terminal.note("")
            return
        if not text:
            continue
        try:
            if text.startswith("/"):
                turn = run_command(session, text, terminal.note)
            else:
                turn = session.ask(text)
            if turn is not None:
                _answer(turn, terminal)
        except Leave:
            return
        except NqEdgeError as error:
            if not terminal.interactive:
                raise
            terminal.note(f"[{error.code}] {error.message} {error.hint}")


def _answer(turn: Turn, terminal: Terminal) -> None:
    """Show an answer as it comes; an interrupt stops it."""
    with turn:
        if turn.dropped:
            terminal.note(f"note: the context is full; the {turn.dropped} oldest messages were dropped")
        try:
            for piece in turn:
                terminal.show(piece)
        except KeyboardInterrupt:
            if not terminal.interactive:
                raise
            terminal.end()
            terminal.note("stopped")
            return
    terminal.end()
    if terminal.interactive and turn.outcome is not None and turn.outcome.finish_reason == "length":
        terminal.note("note: the answer was cut: -n allows no more, or the context is full")


def shown(text: str) -> str:
    """Text of a model, without what would move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
