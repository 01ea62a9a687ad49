# SPDX-License-Identifier: Apache-2.0
"""A long session: many requests to one loaded bundle, the process's memory after each, and after closing it.

    python -m benchmarks.long_session BUNDLE [--tokens 10000] [--append]

The session runs in a process of its own. Requests differ in length of prompt and text and in sampling, every seventh
ends early by a stop string. Then `nq-edge generate` is ended by SIGTERM in the middle of a text.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows

SESSION = """
import gc, json, sys, time
from nanoquant_edge.runtimes import Generator, SamplingConfig
def resident(kind="VmRSS:"):
    for line in open("/proc/self/status"):
        if line.startswith(kind):
            return int(line.split()[1]) * 1024 / 1e6
base, total, number, rows = resident(), 0, 0, []
generator = Generator.from_bundle(sys.argv[1], spin=False)
loaded, begin = resident(), time.perf_counter()
words = "the river was wide and the town beside it old and every spring the water rose".split()
while total < int(sys.argv[2]):
    prompt = " ".join(words[(number + i) % len(words)] for i in range(3 + 17 * (number % 12)))
    sampling = SamplingConfig(temperature=0.9 * (number % 2), top_p=0.95, seed=number)
    new = min(32 + 48 * (number % 6), int(sys.argv[2]) - total)
    result = generator.generate(prompt, max_new_tokens=new, sampling=sampling, stop=("the",) if number % 7 == 6 else ())
    total, number = total + len(result.ids), number + 1
    rows.append((total, resident(), result.decode_tps, resident("RssAnon:")))
seconds = time.perf_counter() - begin
generator.close()
gc.collect()
found = {"base": base, "loaded": loaded, "closed": resident(), "requests": number, "seconds": seconds, "rows": rows}
print(json.dumps(found))
"""


def session(bundle: Path, tokens: int) -> dict[str, Any]:
    """Run a session and sum it up."""
    done = subprocess.run([sys.executable, "-c", SESSION, str(bundle), str(tokens)], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    rows = found["rows"]

    def after(share: float) -> float:
        return next(row[1] for row in rows if row[0] >= share * tokens)

    rates = sorted(row[2] for row in rows)
    late = [row for row in rows if row[0] >= 0.2 * tokens]
    return {
        "requests": found["requests"],
        "tokens": rows[-1][0],
        "seconds": round(found["seconds"], 1),
        "decode_tps_median": round(rates[len(rates) // 2], 2),
        "rss_mb": {
            "before loading": round(found["base"], 1),
            "loaded": round(found["loaded"], 1),
            **{f"after {share:.0%}": round(after(share), 1) for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)},
            "closed": round(found["closed"], 1),
        },
        "growth_mb_last_80_percent": round(late[-1][1] - late[0][1], 2),
        # Pages of the mapped weights file come in as new words touch the embedding table; the rest must not grow.
        "private_mb_at_20_percent": round(late[0][3], 1),
        "private_growth_mb_last_80_percent": round(late[-1][3] - late[0][3], 2),
    }


def end_by_sigterm(bundle: Path) -> dict[str, Any]:
    """Send SIGTERM to `nq-edge generate` once text comes; status, time to the end, and what was written."""
    command = [sys.executable, "-m", "nanoquant_edge", "generate", str(bundle), "-p", "Once", "-n", "4000", "--no-spin"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(20)
    sent = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=60)
    return {
        "status": process.returncode,
        "seconds": round(time.perf_counter() - sent, 3),
        "text_bytes": len(first) + len(rest),
        "traceback": b"Traceback" in errors,
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", type=click.IntRange(100), default=10_000, show_default=True)
@click.option("--append", is_flag=True, help="Add the row to docs/figures/long_session.json.")
def main(bundle: Path, tokens: int, append: bool) -> None:
    """Run a long session with BUNDLE and print its memory."""
    row = {"bundle": bundle.name, **session(bundle, tokens), "sigterm": end_by_sigterm(bundle)}
    click.echo(json.dumps(row, indent=1))
    if append:
        append_rows("long_session", [row])


if __name__ == "__main__":
    main()
