# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model in a terminal: `session` keeps it, `commands` are what begins with a slash."""

from __future__ import annotations

from .commands import HELP, Leave, run_command
from .session import ChatOptions, ChatSession, Turn

__all__ = ["HELP", "ChatOptions", "ChatSession", "Leave", "Turn", "run_command"]
