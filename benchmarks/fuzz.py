# SPDX-License-Identifier: Apache-2.0
"""The fuzzing campaign: every Python reader under atheris, every CPU operator under AddressSanitizer and UBSan.

    python -m benchmarks.fuzz --python-cases 5000 --native-cases 60000 [--append] [--only gguf,manifest]

Counts are cases run; a finding stops its target and is kept in build/fuzz. Needs atheris (pip install atheris) for the
readers, and a C++ compiler with sanitizers and CMake for the operators.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, listed
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
_SANITIZED = ["-DNQ_BUILD_TESTS=ON", "-DNQ_CUDA=OFF", "-DNQ_TENSORRT=OFF", "-DNQ_SANITIZE=address,undefined"]


def attack_reader(name: str, cases: int, seconds: int, folder: Path) -> dict[str, Any]:
    """One Python reader; libFuzzer stops at the number of cases, at the time, or at a finding."""
    corpus, found = folder / "corpus" / name, folder / "found" / name
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    # Each way to damage a file once, so that the first mutations have something to work on.
    for number, script in enumerate((b"\x40\x00\x00", b"\xc8\x00\x00\x00\x00\x00", b"\xc8\x03" + bytes(range(40)))):
        (corpus / f"start-{number}").write_bytes(script)
    limits = [f"-runs={cases}", f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=400"]
    kept = [str(corpus), str(ROOT / "tests/data/fuzz" / name)]
    options = [*limits, f"-artifact_prefix={found}/", "-print_final_stats=1", "-seed=1"]
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.entry",
        name,
        *[path for path in kept if Path(path).is_dir()],
        *options,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    took = time.perf_counter() - start
    (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    peak = re.findall(r"stat::peak_rss_mb:\s*(\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "target": name,
        "kind": "python",
        "tool": "atheris",
        "cases": int(runs[-1]) if runs else 0,
        "seconds": round(took, 1),
        "findings": len([path for path in found.iterdir() if path.name.startswith(("crash", "oom", "timeout"))]),
        "exit_status": done.returncode,
        "coverage": int(coverage[-1]) if coverage else None,
        "peak_rss_mb": int(peak[-1]) if peak else None,
    }


def attack_operators(cases: int, folder: Path) -> list[dict[str, Any]]:
    """Every CPU operator of the library, built with sanitizers; a row each."""
    build = folder / "sanitized"
    subprocess.run(["cmake", "-S", str(ROOT / "plugins"), "-B", str(build), *_SANITIZED], check=True, stdout=2)
    subprocess.run(["cmake", "--build", str(build), "--target", "nq_fuzz_ops", "nanoquant_ort"], check=True, stdout=2)
    library = build / "onnxruntime/libnanoquant_ort.so"
    start = time.perf_counter()
    done = subprocess.run(
        [str(build / "tests/nq_fuzz_ops"), str(library), str(cases), "1"], capture_output=True, text=True
    )
    took = time.perf_counter() - start
    (folder / "operators.log").write_text(done.stdout + done.stderr)
    counts = json.loads(done.stdout) if done.returncode == 0 else {"unfinished": {"cases": 0}}
    total = sum(seen["cases"] for seen in counts.values()) or 1
    return [
        {
            "target": name,
            "kind": "native",
            "tool": "nq_fuzz_ops, AddressSanitizer and UndefinedBehaviorSanitizer",
            **seen,
            "seconds": round(took * seen["cases"] / total, 1),
            "findings": int(done.returncode != 0),
            "exit_status": done.returncode,
        }
        for name, seen in counts.items()
    ]


@click.command()
@click.option("--python-cases", default=5000, show_default=True, help="Cases of each reader.")
@click.option("--native-cases", default=60000, show_default=True, help="Cases of all operators together; 0 for none.")
@click.option("--seconds", default=300, show_default=True, help="Most time for one reader.")
@click.option("--only", callback=listed(str), default="", help="Readers, separated by commas [default: all].")
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/fuzz.json.")
def main(python_cases: int, native_cases: int, seconds: int, only: tuple[str, ...], append: bool) -> None:
    """Run the campaign and print a table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = ROOT / "build/fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in (only or TARGETS) if python_cases else ():
        rows.append(attack_reader(name, python_cases, seconds, folder))
        click.echo(json.dumps(rows[-1]))
    if native_cases:
        for row in attack_operators(native_cases, folder):
            rows.append(row)
            click.echo(json.dumps(row))
    totals = {key: round(sum(row[key] for row in rows), 1) for key in ("cases", "seconds", "findings")}
    click.echo(json.dumps(totals))
    if append:
        append_rows("fuzz", rows)
    raise SystemExit(1 if totals["findings"] or any(row["exit_status"] for row in rows) else 0)


if __name__ == "__main__":
    main()
