# SPDX-License-Identifier: Apache-2.0
"""How far a long step is: one type, from the loop that knows it to the bar that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Show"]

#: What a caller is told: the fraction that is done, and what is being done. A `Progress` is one too.
Show = Callable[[float, str], None]


def _nowhere(fraction: float, text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Progress:
    """Tells how much of a step is done, between 0 and 1, and what is being done.

    A step that consists of others hands each of them a `part` of its own range.

    Args:
        show: called with the fraction of the whole that is done and a few words; shows nothing by default.
        start: fraction of the whole at which this step begins.
        end: fraction of the whole at which this step ends.
        prefix: put before the words of this step.

    Example:
        >>> progress = Progress(lambda fraction, text: print(f"{fraction:.0%} {text}"))
        >>> progress(0.5, "reading")
        50% reading
        >>> progress.part(0.5, 1.0, "block 2: ")(0.5, "tuning")
        75% block 2: tuning
    """

    show: Show = _nowhere
    start: float = 0.0
    end: float = 1.0
    prefix: str = ""

    @classmethod
    def to(cls, show: Show | None) -> Progress:
        """The progress that tells `show`, or nobody."""
        if show is None:
            return cls()
        return show if isinstance(show, cls) else cls(show)

    def __call__(self, fraction: float, text: str = "") -> None:
        """Say that `fraction` (0 to 1) of this step is done, and in a few words what is being done."""
        self.show(self.start + (self.end - self.start) * fraction, self.prefix + text)

    def part(self, start: float, end: float, prefix: str = "") -> Progress:
        """The progress of one of this step's parts, which runs from `start` to `end` of this step."""
        width = self.end - self.start
        return Progress(self.show, self.start + width * start, self.start + width * end, self.prefix + prefix)
