# SPDX-License-Identifier: Apache-2.0
"""Guessing tokens ahead: accepted share and speed-up on summarizing, code editing and chat prompts.

    python -m benchmarks.drafting BUNDLE [--draft-model BUNDLE] [--append]

Each prompt is written with and without guesses by turns, greedily, in one slot; the texts must be equal. Times are the
processor's, of the whole process on one thread: what else the machine does counts less than on a clock.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Generator, SamplingConfig, open_slots
from nanoquant_edge.serving import Outcome, Request, Scheduler, SchedulerOptions
from nanoquant_edge.serving.drafting import Drafter, ModelDrafter, NgramDrafter

PROMPTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "drafting.json").read_text(encoding="utf-8"))


class Writer:
    """A bundle that writes one text at a time, with or without guesses."""

    def __init__(self, bundle: Path, draft: int, draft_model: Path | None) -> None:
        self._generator = Generator.from_bundle(bundle, threads=1, max_context=64)
        opened = Bundle.open(bundle)
        slots = open_slots(opened, threads=1, count=1, max_context=min(2048, opened.kv.capacity))
        drafter: Drafter = NgramDrafter()
        if draft_model is not None:
            ahead = open_slots(Bundle.open(draft_model), threads=1, count=1, max_context=slots.max_context)
            drafter = ModelDrafter(ahead, slots.vocab_size)
        options = SchedulerOptions(draft=draft, keep_prefixes=False)
        self._scheduler = Scheduler(
            slots, self._generator.tokenizer, eos_ids=self._generator.eos_ids, options=options, drafter=drafter
        )

    def write(self, text: str, sampling: SamplingConfig, count: int) -> tuple[Outcome, float]:
        """A chat's answer, and the processor seconds from its first token to its last."""
        ids = self._generator.encode([{"role": "user", "content": text}])
        request = Request(ids=ids, max_new_tokens=count, sampling=sampling)
        answer = self._scheduler.submit(request)
        next(answer)
        begin = time.process_time()
        outcome = answer.result()
        return outcome, time.process_time() - begin

    def steps(self) -> int:
        """Calls of the model so far."""
        return self._scheduler.statistics().counters.steps


def measure(kind: str, writers: tuple[Writer, Writer], sampling: SamplingConfig, tokens: int, repetitions: int) -> Any:
    """One row: all prompts of a kind, plain and drafted by turns."""
    plain_s, drafted_s = 0.0, 0.0
    drafted = accepted = new = 0
    for text in PROMPTS[kind]:
        plain, ahead = [], []
        for _ in range(repetitions):
            wanted, seconds = writers[0].write(text, sampling, tokens)
            plain.append(seconds)
            found, seconds = writers[1].write(text, sampling, tokens)
            ahead.append(seconds)
            if found.ids != wanted.ids:
                raise SystemExit("a text changed because of guesses")
        plain_s, drafted_s = plain_s + statistics.median(plain), drafted_s + statistics.median(ahead)
        drafted, accepted, new = drafted + found.drafted, accepted + found.accepted, new + len(found.ids)
    return {
        "kind": kind,
        "new_tokens": new,
        "drafted": drafted,
        "accepted": accepted,
        "accepted_share": round(accepted / max(drafted, 1), 3),
        "of_tokens": round(accepted / new, 3),
        "plain_ms": round(1000 * plain_s / new, 2),
        "drafted_ms": round(1000 * drafted_s / new, 2),
        "speedup": round(plain_s / drafted_s, 3),
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--draft-model", type=click.Path(path_type=Path), help="A bundle that guesses instead of the look-up.")
@click.option("--draft", default=8, show_default=True, help="Most tokens guessed ahead.")
@click.option("--tokens", default=128, show_default=True, help="New tokens of a text.")
@click.option("--repetitions", default=3, show_default=True)
@click.option("--repetition-penalty", default=1.1, show_default=True, help="A small model loops without one.")
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/drafting.json.")
@figures_option
def main(bundle: Path, draft_model: Path | None, append: bool, folder: Path, **options: Any) -> None:
    """Print a row for each kind of prompt."""
    sampling = SamplingConfig(repetition_penalty=options["repetition_penalty"])
    writers = Writer(bundle, 0, None), Writer(bundle, options["draft"], draft_model)
    rows = []
    for kind in PROMPTS:
        row = measure(kind, writers, sampling, options["tokens"], options["repetitions"])
        named = {"model": bundle.name, "drafter": "ngram" if draft_model is None else draft_model.name}
        rows.append({**named, "draft": options["draft"], "repetition_penalty": options["repetition_penalty"], **row})
        click.echo(json.dumps(rows[-1]))
    if append:
        append_rows("drafting", rows, options["repetitions"], folder)


if __name__ == "__main__":
    main()
