# SPDX-License-Identifier: Apache-2.0
"""The outcome of a validation: one entry a rung, and the table that users see."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FAIL", "PASS", "SKIPPED", "Report", "Rung"]

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        number: 3 to 6, as in the documentation.
        name: what was compared.
        status: "pass", "fail" or "skipped".
        figures: measured values.
        limits: what each was held against, by the same names.
        note: why it was skipped, or what failed.
    """

    number: int
    name: str
    status: str
    figures: dict[str, float | int] = field(default_factory=dict)
    limits: dict[str, float | int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Outcome of `validate`.

    Attributes:
        bundle: folder that was validated.
        dtype: its activation type.
        kernel: what computed the compressed layers: "nanoquant" or "portable".
        reference: "torch" or "recorded".
        text: where the windows come from.
        windows, window_length: how many tokens were compared.
        rungs: the ladder.
        first_diverging: name of the first layer or block that differs, in order of computation; None when none does.
        seconds: how long it took.
        remarks: how far the backend itself is proved, where a passed validation does not say all.
    """

    bundle: str
    dtype: str
    kernel: str
    reference: str
    text: str
    windows: int
    window_length: int
    rungs: tuple[Rung, ...]
    first_diverging: str | None
    seconds: float
    remarks: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "fail" when a rung failed, "incomplete" when one was skipped, else "pass"."""
        states = {rung.status for rung in self.rungs}
        if FAIL in states or not states:
            return FAIL
        return "incomplete" if SKIPPED in states else PASS

    @property
    def passed(self) -> bool:
        """Whether every rung ran and passed."""
        return self.status == PASS

    def rung(self, number: int) -> Rung:
        """The entry of one rung."""
        return next(rung for rung in self.rungs if rung.number == number)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite become null."""
        entry = {"status": self.status, **asdict(self)}
        cleaned = _finite(entry)
        assert isinstance(cleaned, dict)
        return cleaned

    def print(self, console: Any = None) -> None:
        """Print the table with rich."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        title = (
            f"{self.bundle}: {self.dtype}, kernel {self.kernel}, against {self.reference}, "
            f"{self.windows} windows of {self.window_length} tokens ({self.text}), {self.seconds:.0f} s"
        )
        console.print(Text(_printable(title)))
        table = Table()
        for column in ("rung", "compared", "outcome", "measured (limit)"):
            table.add_column(column)
        for rung in self.rungs:
            lines = [f"{name} {_number(value)}{_limit(rung, name)}" for name, value in rung.figures.items()]
            if rung.note:
                lines.append(rung.note)
            table.add_row(str(rung.number), rung.name, rung.status, Text(_printable("\n".join(lines))))
        console.print(table, highlight=False, markup=False)
        if self.first_diverging:
            console.print(Text(_printable(f"first diverging: {self.first_diverging}")))
        console.print(f"outcome: {self.status}", highlight=False)
        for remark in self.remarks:
            console.print(Text(_printable(f"note: {remark}")))


def _printable(text: str) -> str:
    """Names and texts come from files of strangers: no control sequence reaches the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _limit(rung: Rung, name: str) -> str:
    return f" ({_number(rung.limits[name])})" if name in rung.limits else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
