# SPDX-License-Identifier: Apache-2.0
"""The outcome of a validation: one entry a step, and the table that users see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .details import Details

__all__ = ["FAIL", "GREEDY", "LAYERS", "LOGITS", "PASS", "PERPLEXITY", "SKIPPED", "Report", "Step"]

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
LAYERS, LOGITS, GREEDY, PERPLEXITY = "layers", "logits", "greedy", "perplexity"

#: Step -> what it compares. "packing" and "kernel" come before these; they are tests of the code, not of a bundle.
_TITLES = {
    LAYERS: "layer and block outputs",
    LOGITS: "logits",
    GREEDY: "greedy tokens",
    PERPLEXITY: "perplexity",
}
#: Numbers by which earlier versions knew the steps; the JSON field `rungs` still has them.
_NUMBERS = {LAYERS: 3, LOGITS: 4, GREEDY: 5, PERPLEXITY: 6}


@dataclass(frozen=True)
class Step:
    """One step of a validation.

    Attributes:
        name: "layers", "logits", "greedy" or "perplexity".
        status: "pass", "fail" or "skipped".
        figures: measured values.
        limits: what each was held against, by the same names.
        note: why it was skipped, or what failed.
    """

    name: str
    status: str
    figures: dict[str, float | int] = field(default_factory=dict)
    limits: dict[str, float | int] = field(default_factory=dict)
    note: str = ""

    @property
    def title(self) -> str:
        """What the step compares, in words."""
        return _TITLES.get(self.name, self.name)

    @property
    def measured(self) -> list[str]:
        """A line for each figure, with its limit where it has one."""
        return [f"{name} {_number(value)}{_limit(self, name)}" for name, value in self.figures.items()]


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
        steps: name -> step, in the order in which they ran.
        first_diverging: name of the first layer or block that differs, in order of computation; None when none does.
        seconds: how long it took.
        device: where it ran: "cpu", "cuda", "cuda:N" or "engine".
        remarks: how far the backend itself is proved, where a passed validation does not say all.
        details: errors of single values and tokens, which pages draw and the JSON form leaves out.
    """

    bundle: str
    dtype: str
    kernel: str
    reference: str
    text: str
    windows: int
    window_length: int
    steps: Mapping[str, Step]
    first_diverging: str | None
    seconds: float
    remarks: tuple[str, ...] = ()
    device: str = "cpu"
    details: Details | None = field(default=None, compare=False, repr=False)

    @property
    def status(self) -> str:
        """ "fail" when a step failed, "incomplete" when one was skipped, else "pass"."""
        states = {step.status for step in self.steps.values()}
        if FAIL in states or not states:
            return FAIL
        return "incomplete" if SKIPPED in states else PASS

    @property
    def passed(self) -> bool:
        """Whether every step ran and passed."""
        return self.status == PASS

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite become null."""
        rungs = [
            {"number": _NUMBERS.get(step.name, 0), **asdict(step), "name": step.title} for step in self.steps.values()
        ]
        entry = asdict(replace(self, details=None))
        del entry["details"]
        cleaned = _finite({"status": self.status, **entry, "rungs": rungs})
        assert isinstance(cleaned, dict)
        return cleaned

    def summary(self) -> dict[str, Any]:
        """The figures alone, as a bundle's manifest keeps them, JSON-ready."""
        steps = {name: {"status": step.status, **step.figures} for name, step in self.steps.items()}
        rungs = [{"rung": _NUMBERS.get(name, 0), **entry} for name, entry in steps.items()]
        return {"status": self.status, "kernel": self.kernel, "text": self.text, "steps": steps, "rungs": rungs}

    def print(self, console: Any = None) -> None:
        """Print the table with rich."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        title = (
            f"{self.bundle}: {self.dtype} on {self.device}, kernel {self.kernel}, against {self.reference}, "
            f"{self.windows} windows of {self.window_length} tokens ({self.text}), {self.seconds:.0f} s"
        )
        console.print(Text(_printable(title)))
        table = Table()
        for column in ("step", "compared", "outcome", "measured (limit)"):
            table.add_column(column)
        for step in self.steps.values():
            lines = [*step.measured, step.note] if step.note else step.measured
            table.add_row(step.name, step.title, step.status, Text(_printable("\n".join(lines))))
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


def _limit(step: Step, name: str) -> str:
    return f" ({_number(step.limits[name])})" if name in step.limits else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
