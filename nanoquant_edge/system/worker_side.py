# SPDX-License-Identifier: Apache-2.0
"""The side of the process that `worker.Worker` starts: reads questions, keeps its limits, writes answers.

On standard input: frames of 8 bytes length and a marshalled value, first the settings with "seconds" and "memory", then
a frame for each question. On standard output: a line of JSON when ready, then one for each answer.
"""

from __future__ import annotations

import json
import marshal
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["serve"]


def serve(prepare: Callable[[dict[str, Any]], Callable[[Any], dict[str, Any]]]) -> None:
    """Answer until the input ends.

    Args:
        prepare: given the settings, imports what is needed and returns what answers a question.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and closes the input
    incoming, out = sys.stdin.buffer, sys.stdout
    settings = _read_frame(incoming)
    if settings is None:
        return
    answer = prepare(settings)
    _limit_process(settings["memory"])
    print(json.dumps({"ready": True}), file=out, flush=True)
    while (question := _read_frame(incoming)) is not None:
        _limit_time(settings["seconds"])
        print(json.dumps(answer(question)), file=out, flush=True)


def _read_frame(stream: BinaryIO) -> Any:
    """The next value; None at the end."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack(">Q", head)
    return marshal.loads(stream.read(size))


def _limit_process(memory: int) -> None:
    """Give this process `memory` bytes of address space beyond what it has, and no file to write."""
    if resource is None:
        return
    limits = [(resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one read, no path object needed
            used = int(file.read().split()[0]) * resource.getpagesize()
        limits.append((resource.RLIMIT_AS, used + memory))
    except (OSError, ValueError):  # no Linux: the limit of time holds
        pass
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _limit_time(seconds: float) -> None:
    """End this process after so much more processor time: its parent may be gone when an answer does not end."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))
