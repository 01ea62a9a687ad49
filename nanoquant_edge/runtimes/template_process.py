# SPDX-License-Identifier: Apache-2.0
"""A process that renders a chat template, and can be killed: no step of Python or C outlives its time.

Limits of memory belong to a process, and a single step of arithmetic cannot be interrupted inside of one. So rendering
has a process of its own, which stays for the next chat. Starting it takes what importing Jinja takes.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..system.children import NEUTRAL_FOLDER, import_path

__all__ = ["TemplateLimits", "TemplateProcess"]

WORKER = Path(__file__).with_name("template_worker.py")
#: Seconds until the process is ready, on a machine that is busy with something else.
_START_SECONDS = 60.0


@dataclass(frozen=True)
class TemplateLimits:
    """What a rendering may take.

    Attributes:
        seconds: until the text is there.
        memory: bytes of address space beyond what Python and Jinja take; Linux only.
        characters: of the text. A context of 128 k tokens is about half a million characters.
    """

    seconds: float = 5.0
    memory: int = 512 << 20
    characters: int = 8 << 20


class TemplateProcess:
    """Renders one template, one chat at a time; starts when first needed, and again after it was killed.

    Args:
        source: Jinja text.
        limits: of each rendering.
    """

    def __init__(self, source: str, limits: TemplateLimits) -> None:
        self._source, self._limits = source, limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._waiting = False

    def render(self, names: Mapping[str, Any]) -> str:
        """The text of a chat.

        Args:
            names: what the template sees; plain data.

        Raises:
            NqEdgeError: NQ-TEMPLATE when the template fails or exceeds its limits, or no process can be started.
        """
        try:
            frame = _frame(dict(names))
        except ValueError as error:
            raise NqEdgeError("NQ-TEMPLATE", f"the chat cannot be passed to its template: {error}.") from error
        with self._lock:
            answer = self._answer(self._ready(), frame)
        if "text" not in answer:
            raise NqEdgeError("NQ-TEMPLATE", f"the chat template {_printable(str(answer.get('error')))}.")
        return str(answer["text"])

    def start(self) -> None:
        """Start the process now, so that it is ready when it is needed; returns at once.

        Raises:
            NqEdgeError: NQ-TEMPLATE when no process can be started.
        """
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        """The running process of this very process: a fork must not share its parent's."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._end()
        command = [sys.executable or "python3", "-I", "-S", "-B", str(WORKER), json.dumps(import_path())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            process = subprocess.Popen(command, cwd=NEUTRAL_FOLDER, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise NqEdgeError("NQ-TEMPLATE", f"no process can be started for the chat template ({error}).") from error
        self._process, self._owner, self._waiting = process, os.getpid(), True
        self._finalizer = weakref.finalize(self, _kill, process, self._owner)
        return process

    def _ready(self) -> subprocess.Popen[bytes]:
        """The process, once it has said that it is ready."""
        process = self._started()
        if not self._waiting:
            return process
        settings = {
            "source": self._source,
            "memory": self._limits.memory,
            "characters": self._limits.characters,
            "seconds": self._limits.seconds,
        }
        if "ready" not in self._exchange(process, _frame(settings), _START_SECONDS):
            code = process.poll()
            self._end()
            raise NqEdgeError("NQ-TEMPLATE", f"the process for the chat template did not start (status {code}).")
        self._waiting = False
        return process

    def _answer(self, process: subprocess.Popen[bytes], frame: bytes) -> dict[str, Any]:
        answer = self._exchange(process, frame, self._limits.seconds)
        if not answer:  # killed, or ended by itself
            self._end()
            answer = {"error": f"took more than {self._limits.memory >> 20} MiB, or ended its process"}
        elif "expired" in answer:
            self._end()
            answer = {"error": f"ran longer than {self._limits.seconds:g} s"}
        return answer

    def _exchange(self, process: subprocess.Popen[bytes], frame: bytes, seconds: float) -> dict[str, Any]:
        """Send a frame and read a line; {"expired"} when the process had to be killed, {} when it ended by itself."""
        assert process.stdin is not None and process.stdout is not None
        deadline = _Deadline(process, seconds)
        try:
            process.stdin.write(frame)
            process.stdin.flush()
            # Six bytes a character, as JSON escapes it: what is longer comes from no honest worker.
            line = process.stdout.readline(6 * self._limits.characters + 1000)
        except OSError:
            line = b""
        finally:
            expired = deadline.passed()
        if expired:
            return {"expired": True}
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


class _Deadline:
    """Kills a process at a time, unless asked before whether it has."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._over = self._killed = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            if not self._over:
                self._killed = True
                self._process.kill()

    def passed(self) -> bool:
        """Whether the process was killed; it will not be from now on."""
        with self._lock:
            self._over = True
        self._timer.cancel()
        return self._killed


def _frame(value: Any) -> bytes:
    content = marshal.dumps(value)
    return struct.pack(">Q", len(content)) + content


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process, unless it belongs to the parent of this one."""
    if owner == os.getpid():
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not yet written has no reader
            pipe.close()  # type: ignore[union-attr]


def _printable(text: str) -> str:
    """Words of a stranger's template: no control sequence reaches a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
