# SPDX-License-Identifier: Apache-2.0
"""`nq-edge doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import json

import click

__all__ = ["command"]

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Look at this machine: device, Python packages, ONNX Runtime, our libraries, GPU, TensorRT, power sensors.

    Exit status 1 when something that is needed here does not work; what is merely absent is a note.
    """
    from ..devices.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"nq-edge on {report.device}", title_justify="left")
        for column in ("", "what", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for check in report.checks:
            table.add_row(_MARKS[check.status], Text(check.name), Text(check.found), Text(check.advice))
        Console().print(table)
    if not report.healthy:
        raise SystemExit(1)
