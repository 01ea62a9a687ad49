# SPDX-License-Identifier: Apache-2.0
"""`nq-edge doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import click

from .streams import echo_json

__all__ = ["command"]

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Look at this machine: device, Python packages, ONNX Runtime, our libraries, GPU, TensorRT, power sensors.

    Exit status 1 when something that is needed here does not work; what is merely absent is a note.
    """
    from ..devices.doctor import examine

    report = examine()
    if as_json:
        echo_json(report.to_dict())
    else:
        from rich.table import Table

        from ..system.terminal import plain, terminal

        table = Table(title=f"nq-edge on {report.device}", title_justify="left")
        for column in ("", "what", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for check in report.checks:
            mark = plain(check.status, _STYLES[check.status])
            table.add_row(mark, plain(check.name), plain(check.found), plain(check.advice))
        terminal().print(table)
    if not report.healthy:
        raise SystemExit(1)
