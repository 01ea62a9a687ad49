# SPDX-License-Identifier: Apache-2.0
"""A server in this process: a real socket, and uvicorn in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["running", "running_model"]


@contextlib.contextmanager
def running(bundle: Path, *, slots: int = 2, queue: int = 64, **options: Any) -> Iterator[str]:
    """The address of a server that serves a bundle.

    Args:
        bundle: its folder.
        slots: texts at once.
        queue: requests that may wait.
        **options: of `ServeOptions`.
    """
    from nanoquant_edge.runtimes import OpenOptions, Target
    from nanoquant_edge.serving import SchedulerOptions
    from nanoquant_edge.serving.opening import open_model

    opening = OpenOptions(device="cpu", threads=1, spin=False)
    scheduling = SchedulerOptions(queue=queue)
    opened = open_model(Target.of(bundle, opening), opening, slots=slots, scheduling=scheduling, names=["tiny", "gpt"])
    with opened as model, running_model(model, **options) as address:
        yield address


@contextlib.contextmanager
def running_model(model: Any, **options: Any) -> Iterator[str]:
    """The address of a server for an opened model."""
    from nanoquant_edge.serving.http import ServeOptions, run

    started, address = threading.Event(), [""]

    def ready(found: str) -> None:
        address[0] = found
        started.set()

    server = run.Server(model, ServeOptions(port=0, **options), ready)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield address[0]
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
