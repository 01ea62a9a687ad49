# SPDX-License-Identifier: Apache-2.0
"""What begins with a slash in a chat: a command to the program, not words to the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from ...errors import NqEdgeError
from ...system.memory import resident_memory_mb
from .session import ChatSession, Turn

__all__ = ["HELP", "Leave", "run_command"]

HELP = """/system TEXT  set the system message and begin anew; /system alone shows it
/reset        forget what was said
/retry        write the last answer again
/save FILE    write the conversation as JSON
/stats        counts, speed and memory
/help         this list
/exit         leave, as the end of input (Ctrl-D) does
Ctrl-C stops an answer; where nothing is being written, it leaves. A line that ends with \\ goes on in the next one."""


class Leave(Exception):
    """The user wants to leave."""


def run_command(session: ChatSession, line: str, say: Callable[[str], None]) -> Turn | None:
    """Do what a line that begins with a slash asks for.

    Args:
        session: the conversation.
        line: as it was typed.
        say: shows a note to the user.

    Returns:
        An answer that begins, for /retry.

    Raises:
        Leave: the user wants to.
        NqEdgeError: NQ-OPTION for a command that there is not, and what commands raise.
    """
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name in ("/exit", "/quit"):
        raise Leave
    if name == "/retry":
        return session.retry()
    actions: dict[str, Callable[[], None]] = {
        "/system": lambda: _system(session, rest, say),
        "/reset": lambda: _reset(session, say),
        "/save": lambda: _save(session, rest, say),
        "/stats": lambda: _statistics(session, say),
        "/help": lambda: say(HELP),
    }
    if name not in actions:
        near = difflib.get_close_matches(name, [*actions, "/retry", "/exit"], n=1)
        hint = f"Did you mean {near[0]}?" if near else "/help lists them."
        raise NqEdgeError("NQ-OPTION", f"there is no command {name[:40]}.", hint)
    actions[name]()
    return None


def _system(session: ChatSession, text: str, say: Callable[[str], None]) -> None:
    if not text:
        say(session.system or "there is no system message beside the template's own")
        return
    session.system = text
    session.reset()
    say("the conversation begins anew with this system message")


def _reset(session: ChatSession, say: Callable[[str], None]) -> None:
    session.reset()
    say("forgotten")


def _save(session: ChatSession, name: str, say: Callable[[str], None]) -> None:
    if not name:
        raise NqEdgeError("NQ-OPTION", "/save needs the name of a file.", "Type: /save chat.json")
    session.save(Path(name))
    say(f"written to {name}")


def _statistics(session: ChatSession, say: Callable[[str], None]) -> None:
    found = session.statistics()
    if last := found.get("last"):
        say(
            f"last answer: {last['prompt_tokens']} tokens in, {last['reused_tokens']} of them kept from before, "
            f"{last['new_tokens']} out ({last['finish_reason']}) · first token {last['ttft_s']:.2f} s · "
            f"{last['decode_tps']:.1f} tokens/s"
        )
    say(f"all {found['answers']} answers: {found['prompt_tokens']} tokens in, {found['new_tokens']} out")
    say(f"context: {found['context_tokens']} of {found['max_context']} tokens · memory {resident_memory_mb():.0f} MB")
