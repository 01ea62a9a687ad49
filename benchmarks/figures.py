# SPDX-License-Identifier: Apache-2.0
"""Figure files: docs/figures/NAME.json = {command, date, machine, versions, repetitions, rows}; rows append."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from nanoquant_edge.system.files import write_json

__all__ = ["FOLDER", "append_rows", "figures_option", "listed", "machine", "merge_rows"]

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"
#: Where a benchmark reads and writes figure files, as the parameter `folder`.
figures_option = click.option(
    "--figures",
    "folder",
    type=click.Path(path_type=Path),
    default=FOLDER,
    help="Folder of the figure files; docs/figures without it.",
)
_PACKAGES = ("torch", "transformers", "onnxruntime", "onnx", "onnx-ir", "numpy")


def listed(kind: type) -> Any:
    """A click callback for options that hold values of `kind`, separated by commas."""
    return lambda _context, _option, text: tuple(kind(part) for part in text.split(",") if part)


def machine() -> str:
    """Processor, cores and GPU, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    text = f"{name}, {os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def versions() -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def append_rows(name: str, rows: list[dict[str, Any]], repetitions: int = 1, folder: Path = FOLDER) -> Path:
    """Add rows to a figure file; each row also says where and when it was made, since a table grows over runs."""
    path = folder / f"{name}.json"
    now = datetime.date.today().isoformat()
    command = " ".join(["python", "-m", f"benchmarks.{name}", *map(shlex.quote, sys.argv[1:])])
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    entry = {
        "command": command,
        "date": now,
        "machine": machine(),
        "versions": versions(),
        "repetitions": repetitions,
        "rows": old["rows"] + [{**row, "date": now, "machine": machine(), "command": command} for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, entry)
    return path


def merge_rows(name: str, source: Path, folder: Path = FOLDER) -> int:
    """Take over the rows of a figure file that another machine wrote, as they are, except those that are there.

    Returns:
        How many were taken over.
    """
    path = folder / f"{name}.json"
    added = json.loads(source.read_text(encoding="utf-8"))
    if not path.is_file():
        write_json(path, added)
        return len(added["rows"])
    old = json.loads(path.read_text(encoding="utf-8"))
    fresh = [row for row in added["rows"] if row not in old["rows"]]
    write_json(path, {**added, "rows": old["rows"] + fresh})
    return len(fresh)
