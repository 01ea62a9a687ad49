# SPDX-License-Identifier: Apache-2.0
"""The checks on a GPU that are not pytest: the kernels' self-test and the TensorRT plugin's life, plain and sanitized.

    python -m benchmarks.gpu_checks

Runs tests/plugins/cuda/sanitize.sh and plugins/tests/run_tensorrt_conformance.sh at the same time and writes what they
counted to docs/figures/gpu_checks.json. Exit status 1 when one of them fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "kernel self-test": "tests/plugins/cuda/sanitize.sh",
    "TensorRT plugin conformance": "plugins/tests/run_tensorrt_conformance.sh",
}


def read_log(name: str, text: str, status: int) -> list[dict[str, Any]]:
    """Rows of a script's log: alone, under memcheck, under racecheck, each with what it counted."""
    parts = re.split(r"^== (\w+)$", text, flags=re.MULTILINE)
    rows = []
    for tool, part in zip(["alone", *parts[1::2]], [parts[0], *parts[2::2]], strict=True):
        found = re.search(r"(\d+) failures", part)
        counted = re.search(r"(\d+) checks,", part)
        errors = re.search(r"ERROR SUMMARY: (\d+) errors", part) or re.search(r"SUMMARY: (\d+) hazards", part)
        rows.append(
            {
                "check": name,
                "under": tool,
                "checks": int(counted[1]) if counted else len(re.findall(r"^(?:ok|FAILED) ", part, re.MULTILINE)),
                "failures": int(found[1]) if found else None,
                "sanitizer_errors": int(errors[1]) if errors else None,
                "exit_status": status,
            }
        )
    return rows


@click.command()
@figures_option
def main(folder: Path) -> None:
    """Run both and write the table."""
    running = {
        name: subprocess.Popen(
            ["bash", str(ROOT / script)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, script in SCRIPTS.items()
    }
    rows = []
    for name, process in running.items():
        text, _ = process.communicate()
        rows += read_log(name, text, process.returncode)
        if process.returncode:
            click.echo(text[-3000:])
    for row in rows:
        click.echo("  ".join(f"{key}={value}" for key, value in row.items()))
    append_rows("gpu_checks", rows, 1, folder)
    sys.exit(int(any(row["exit_status"] for row in rows)))


if __name__ == "__main__":
    main()
