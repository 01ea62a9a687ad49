# SPDX-License-Identifier: Apache-2.0
"""`Progress` that is visible everywhere: as a bar on a terminal, as a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ..errors import printable
from ..system.progress import Progress
from ..system.terminal import terminal

__all__ = ["LogLines", "shown_progress"]

#: In a log, nothing is said of a step that ends within so many seconds.
_QUIET_SECONDS = 2.0
#: Later a line this often, whether anything moved or not, and whenever the kind of work changes.
_LINE_SECONDS = 15.0
#: Share that must be done before the time that is left can be told from it.
_TELLING = 0.05


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
        with _log(title) as progress:
            yield progress


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress as rich

    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn(title, markup=False),
        rich.BarColumn(bar_width=20),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(elapsed_when_finished=False),
        rich.TextColumn("{task.description}", markup=False),
    )
    with rich.Progress(*columns, console=terminal(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        yield Progress(lambda done, text: bar.update(task, completed=done, description=printable(text)))


@contextlib.contextmanager
def _log(title: str) -> Iterator[Progress]:
    """Lines, and a thread that goes on writing them while a long step says nothing."""
    lines, stop = LogLines(title), threading.Event()

    def follow() -> None:
        while not stop.wait(1.0):
            lines.tick()

    thread = threading.Thread(target=follow, daemon=True, name="progress")
    thread.start()
    try:
        yield Progress(lines)
    finally:
        stop.set()
        thread.join()


class LogLines:
    """Writes a line when the kind of work changes and every so often besides, with elapsed time and time left.

    Args:
        title: what the whole is.
        clock: seconds.
        write: takes a line.
    """

    def __init__(
        self, title: str, clock: Callable[[], float] = time.monotonic, write: Callable[[str], None] | None = None
    ) -> None:
        self._title, self._clock, self._write = title, clock, write or _to_standard_error
        self._started, self._shown = clock(), 0.0
        self._kind = ""
        self._fraction, self._text = 0.0, ""
        self._lock = threading.Lock()

    def __call__(self, fraction: float, text: str) -> None:
        """Take note of what is done, and say so where it is time."""
        with self._lock:
            self._fraction, self._text = fraction, text
            self._say()

    def tick(self) -> None:
        """Say again what is being done where it is time, although nothing moved."""
        with self._lock:
            self._say()

    def _say(self) -> None:
        elapsed = self._clock() - self._started
        kind = self._text.split(":")[0].split(" ")[0]
        if not self._text or elapsed < _QUIET_SECONDS or (kind == self._kind and elapsed - self._shown < _LINE_SECONDS):
            return
        self._shown, self._kind = elapsed, kind
        done, left = self._fraction, ""
        if _TELLING < done < 1:
            left = f", about {elapsed * (1 - done) / done:.0f} s left"
        self._write(f"{self._title} {100 * done:3.0f} % after {elapsed:.0f} s{left}: {printable(self._text)}")


def _to_standard_error(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed or full log is no reason to stop
        print(line, file=sys.stderr, flush=True)
