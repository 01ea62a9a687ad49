# SPDX-License-Identifier: Apache-2.0
"""Several texts at once: total tokens a second by their number, and the first token of a second turn.

    python -m benchmarks.slots BUNDLE [--threads 2] [--append]

Steps of all numbers of texts take turns, so that what else the machine does falls on all of them; `seconds` are
medians. `processor_ms` are the process's processor time of a step, which counts what other programs took less.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import append_rows, figures_option, listed
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.runtimes import SlotRow, Slots, open_slots
from nanoquant_edge.serving import Request, Scheduler


def together(slots: Slots, numbers: tuple[int, ...], past: int, repetitions: int) -> list[dict[str, Any]]:
    """A row for each number of texts, each text with `past` tokens before the step."""
    random = np.random.default_rng(0)
    for slot in range(max(numbers)):
        slots.forward([SlotRow(slot, random.integers(5, slots.vocab_size, past).tolist(), logits=0)])
    wall: dict[int, list[float]] = {number: [] for number in numbers}
    processor: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(repetitions):
        for number in numbers:
            rows = [SlotRow(slot, [int(random.integers(5, slots.vocab_size))]) for slot in range(number)]
            begin, used = time.perf_counter(), time.process_time()
            slots.forward(rows)
            wall[number].append(time.perf_counter() - begin)
            processor[number].append(time.process_time() - used)
            for slot in range(number):
                slots.truncate(slot, past)
    one = statistics.median(wall[numbers[0]])
    found = []
    for number in numbers:
        seconds = statistics.median(wall[number])
        found.append(
            {
                "case": "texts at once",
                "texts": number,
                "past": past,
                "step_ms": round(1000 * seconds, 2),
                "step_ms_least": round(1000 * min(wall[number]), 2),
                "processor_ms": round(1000 * statistics.median(processor[number]), 2),
                "total_tps": round(number / seconds, 1),
                "times_one": round(number * one / seconds, 2),
            }
        )
    for slot in range(slots.count):
        slots.truncate(slot, 0)
    return found


def turns(slots: Slots, bundle: Bundle, history: int, repetitions: int) -> dict[str, Any]:
    """The row about a conversation: a first turn of `history` tokens, and a second of 20 more behind its answer."""
    random = np.random.default_rng(1)
    first_s, second_s, anew_s = [], [], []
    with Scheduler(slots, load_tokenizer(bundle.folder)) as scheduler:
        for _ in range(repetitions):
            prompt = random.integers(5, slots.vocab_size, history).tolist()
            first = scheduler.submit(Request(ids=prompt, max_new_tokens=16)).result()
            turn = [*prompt, *first.ids, *random.integers(5, slots.vocab_size, 20).tolist()]
            second = scheduler.submit(Request(ids=turn, max_new_tokens=16)).result()
            other = [*random.integers(5, slots.vocab_size, 8).tolist(), *turn[8:]]
            anew = scheduler.submit(Request(ids=other, max_new_tokens=16)).result()
            first_s.append(first.ttft_s)
            second_s.append(second.ttft_s)
            anew_s.append(anew.ttft_s)
    return {
        "case": "second turn",
        "history": history,
        "first_ms": round(1000 * statistics.median(first_s), 1),
        "second_ms": round(1000 * statistics.median(second_s), 1),
        "computed_anew_ms": round(1000 * statistics.median(anew_s), 1),
        "second_of_first": round(statistics.median(b / a for a, b in zip(first_s, second_s, strict=True)), 3),
    }


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--texts", default="1,2,4,8,16", show_default=True, callback=listed(int), help="The first is compared with."
)
@click.option("--past", default=128, show_default=True, help="Tokens of each text before the step.")
@click.option("--history", default=1000, show_default=True, help="Tokens of the first turn.")
@click.option("--repetitions", default=30, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/slots.json.")
@figures_option
def main(path: Path, threads: int, texts: tuple[int, ...], append: bool, folder: Path, **options: Any) -> None:
    """Print the rows."""
    bundle = Bundle.open(path)
    with open_slots(bundle, threads=threads, count=max(texts)) as slots:
        common = {"model": path.name, "threads": threads, "exact": slots.exact}
        rows = together(slots, texts, options["past"], options["repetitions"])
    slots = open_slots(bundle, threads=threads, count=4)
    rows.append(turns(slots, bundle, options["history"], max(3, options["repetitions"] // 5)))
    rows = [{**common, **row} for row in rows]
    for row in rows:
        click.echo(json.dumps(row))
    if append:
        append_rows("slots", rows, options["repetitions"], folder)


if __name__ == "__main__":
    main()
