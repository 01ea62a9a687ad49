# SPDX-License-Identifier: Apache-2.0
"""`nq-edge doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .streams import echo_json

if TYPE_CHECKING:
    from ..devices.doctor import Report

__all__ = ["command"]

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(as_json: bool) -> None:
    """Look at this machine: device, Python packages, ONNX Runtime, our libraries, GPU, TensorRT, power sensors.

    Exit status 1 when something that is needed here does not work; what is merely absent is a note.
    """
    from ..devices.doctor import examine

    report = examine()
    if as_json:
        echo_json(report.to_dict())
    else:
        _print(report)
    if not report.healthy:
        raise SystemExit(1)


def _print(report: Report) -> None:
    """The answer, then one line for each check; what to do about it stands below what was found."""
    from rich.table import Table

    from ..system.terminal import plain, terminal

    console = terminal()
    problems, notes = (sum(check.status == status for check in report.checks) for status in ("problem", "note"))
    told = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in ((problems, "problem"), (notes, "note"))]
    verdict = "bundles run here" if report.healthy else "something that bundles need does not work"
    console.print(plain(f"nq-edge on {report.device}: {verdict} ({', '.join(told)})", style="bold"))
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        table.add_row(plain(check.status, _STYLES[check.status]), plain(check.name), plain(check.found))
        if check.advice:
            table.add_row("", "", plain(f"what to do: {check.advice}"))
    console.print(table)
