# SPDX-License-Identifier: Apache-2.0
"""A process of ours that answers questions about a stranger's data, and can be killed: no step outlives its time.

Limits of memory belong to a process, and a single step of arithmetic or of native code cannot be interrupted inside of
one. The process starts when first needed and stays for the next question. `worker_side` is what its script begins with.
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

from .children import NEUTRAL_FOLDER, import_path

__all__ = ["EXPIRED", "Worker", "WorkerLimits", "pack_frame"]

#: Seconds until the process is ready, on a machine that is busy with something else.
_START_SECONDS = 60.0
#: The answer of a process that had to be killed because its time was over.
EXPIRED: dict[str, Any] = {"expired": True}


@dataclass(frozen=True)
class WorkerLimits:
    """What one answer may take.

    Attributes:
        seconds: until it is there.
        memory: bytes of address space beyond what the process takes when it is ready; Linux only.
        answer: most bytes of it.
    """

    seconds: float
    memory: int
    answer: int


class Worker:
    """A script in a process of its own, asked one question at a time; starts again after it was killed.

    Args:
        script: a file that runs `worker_side.serve`.
        settings: plain data that it is given first.
        limits: of each answer.
    """

    def __init__(self, script: Path, settings: Mapping[str, Any], limits: WorkerLimits) -> None:
        self._script, self._limits = script, limits
        self._settings = {**settings, "seconds": limits.seconds, "memory": limits.memory}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._waiting = False

    def ask(self, frame: bytes) -> dict[str, Any]:
        """The answer to a question that `pack_frame` made; `EXPIRED` after too long, {} when the process ended itself.

        Raises:
            OSError: no process can be started.
            ChildProcessError: it does not become ready.
        """
        with self._lock:
            answer = self._exchange(self._ready(), frame, self._limits.seconds)
            if not answer or answer == EXPIRED:
                self._end()
            return answer

    def start(self) -> None:
        """Start the process now, so that it is ready when it is needed; returns at once.

        Raises:
            OSError: no process can be started.
        """
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        """The running process of this very process: a fork must not share its parent's."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._end()
        command = [sys.executable or "python3", "-I", "-S", "-B", str(self._script), json.dumps(import_path())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=NEUTRAL_FOLDER, **pipes)  # type: ignore[call-overload]
        self._process, self._owner, self._waiting = process, os.getpid(), True
        self._finalizer = weakref.finalize(self, _kill, process, self._owner)
        return process

    def _ready(self) -> subprocess.Popen[bytes]:
        """The process, once it has said that it is ready."""
        process = self._started()
        if not self._waiting:
            return process
        if "ready" not in self._exchange(process, pack_frame(self._settings), _START_SECONDS):
            code = process.poll()
            self._end()
            raise ChildProcessError(f"status {code}")
        self._waiting = False
        return process

    def _exchange(self, process: subprocess.Popen[bytes], frame: bytes, seconds: float) -> dict[str, Any]:
        """Send a frame and read a line; `EXPIRED` when the process had to be killed, {} when it ended by itself."""
        assert process.stdin is not None and process.stdout is not None
        deadline = _Deadline(process, seconds)
        try:
            process.stdin.write(frame)
            process.stdin.flush()
            line = process.stdout.readline(self._limits.answer)
        except OSError:
            line = b""
        finally:
            expired = deadline.passed()
        if expired:
            return EXPIRED
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


def pack_frame(value: Any) -> bytes:
    """A question as the process reads it.

    Raises:
        ValueError: it is not plain data, or nested too deeply.
    """
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
