# SPDX-License-Identifier: Apache-2.0
"""`Progress` that is visible everywhere: as a bar on a terminal, as a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from ..system.progress import Progress
from ..system.terminal import terminal

__all__ = ["shown_progress"]

#: In a log, a line this often (seconds), and whenever the kind of work changes.
_LINE_SECONDS = 15.0


@contextlib.contextmanager
def shown_progress(title: str, hidden: bool = False) -> Iterator[Progress]:
    """A step's progress, shown on standard error with an estimate of the time that is left.

    Args:
        title: what the whole is.
        hidden: show nothing.
    """
    if hidden:
        yield Progress()
    elif sys.stderr.isatty():
        with _bar(title) as progress:
            yield progress
    else:
        yield Progress(_Lines(title))


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress as rich

    columns = (
        rich.TextColumn(title, markup=False),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(elapsed_when_finished=False),
        rich.TextColumn("{task.description}", markup=False),
    )
    with rich.Progress(*columns, console=terminal(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        yield Progress(lambda fraction, text: bar.update(task, completed=fraction, description=text))


class _Lines:
    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.shown = -_LINE_SECONDS
        self.kind = ""

    def __call__(self, fraction: float, text: str) -> None:
        elapsed = time.monotonic() - self.started
        kind = text.split(":")[0].split(" ")[0]
        if elapsed - self.shown < _LINE_SECONDS and kind == self.kind:
            return
        self.shown, self.kind = elapsed, kind
        left = f", about {elapsed * (1 - fraction) / fraction:.0f} s left" if fraction > 0.1 else ""
        print(f"{self.title} {100 * fraction:3.0f} % after {elapsed:.0f} s{left}: {text}", file=sys.stderr, flush=True)
