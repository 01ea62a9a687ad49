# SPDX-License-Identifier: Apache-2.0
"""Energy between two moments: counters are subtracted, powers are sampled and integrated by the trapezoidal rule."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .sources import PowerSource, find_sources
from .tegrastats import total_watts

__all__ = ["Energy", "PowerRun", "measure_power"]

#: Seconds between samples of power.
_INTERVAL = 0.1


@dataclass(frozen=True)
class Energy:
    """What a stretch of work took.

    Attributes:
        seconds: its length.
        joules: in all: a Jetson's module input, else the counters of GPUs and processors together; None where the
            machine has no sensor.
        sources: names of the sensors that `joules` is from.
        rails: rail -> joules.
        absent: sensor -> why it was not read.
        samples: readings of power; 0 where only counters were read.
    """

    seconds: float
    joules: float | None
    sources: tuple[str, ...]
    rails: dict[str, float]
    absent: dict[str, str]
    samples: int

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds

    def per_token(self, tokens: int) -> float | None:
        """Joules a token."""
        return None if self.joules is None or tokens < 1 else self.joules / tokens

    def to_dict(self, tokens: int = 0) -> dict[str, Any]:
        """JSON-ready; with `tokens`, energy a token too."""
        entry = {**vars(self), "sources": list(self.sources), "watts": self.watts}
        return {**entry, "joules_per_token": self.per_token(tokens)} if tokens else entry


@dataclass
class PowerRun:
    """A measurement; `energy` is there when its context has ended."""

    energy: Energy | None = None
    _powers: list[tuple[float, dict[str, float]]] = field(default_factory=list)


@contextlib.contextmanager
def measure_power(
    sources: list[PowerSource] | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[PowerRun]:
    """Measure the body of a `with` statement.

    Args:
        sources: sensors, which are closed in the end; None takes what the machine has.
        clock: seconds.
    """
    absent: dict[str, str] = {}
    if sources is None:
        sources, absent = find_sources()
    run, stop = PowerRun(), threading.Event()
    counters = [source for source in sources if source.counts]
    sampled = [source for source in sources if not source.counts]

    def sample() -> None:
        for source in sampled:
            if rails := source.read():
                run._powers.append((clock(), rails))

    def follow() -> None:
        while not stop.wait(_INTERVAL):
            sample()

    thread = threading.Thread(target=follow, daemon=True)
    try:
        begin, first = clock(), [source.read() for source in counters]
        sample()
        if sampled:
            thread.start()
        try:
            yield run
        finally:
            stop.set()
            if sampled:
                thread.join()
            sample()
            end, last = clock(), [source.read() for source in counters]
            rails = {
                name: after[name] - before[name]
                for before, after in zip(first, last, strict=True)
                for name in after
                if name in before
            }
            run.energy = _summed(run._powers, rails, end - begin, counters, sampled, absent)
    finally:
        for source in sources:
            source.close()


def _summed(
    powers: list[tuple[float, dict[str, float]]],
    counted: dict[str, float],
    seconds: float,
    counters: list[PowerSource],
    sampled: list[PowerSource],
    absent: dict[str, str],
) -> Energy:
    """Rails and their total. Sampled rails are a board's, which include all that counters see."""
    rails = dict(counted)
    for (begin, before), (end, after) in itertools.pairwise(powers):
        for name in after.keys() & before.keys():
            rails[name] = rails.get(name, 0.0) + (end - begin) * (before[name] + after[name]) / 2
    board = {name: value for name, value in rails.items() if name not in counted}
    if board:
        joules, used = total_watts(board), sampled  # the same choice of rails for energy as for power
    else:
        joules, used = (sum(counted.values()) if counted else None), counters
    names = tuple(source.name for source in used) if joules is not None else ()
    return Energy(seconds, joules, names, rails, absent, len(powers))
