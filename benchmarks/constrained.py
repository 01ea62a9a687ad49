# SPDX-License-Identifier: Apache-2.0
"""Random JSON schemas, each of which a model must keep to, and what a token of constrained text costs.

    python -m benchmarks.constrained BUNDLE --schemas 500 --append

Every schema is compiled, a text is written under it at temperature 1 (the model may be one of random weights), and the
text is validated by the package jsonschema. Then the same number of tokens is written free and under a schema that any
object meets, in turns; the difference is the price of a mask. The masks' own processor time is measured besides.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.runtimes import OpenOptions, SamplingConfig, Target
from nanoquant_edge.serving import Request, SchedulerOptions
from nanoquant_edge.serving.constraint import Grammar, GrammarMask
from nanoquant_edge.serving.model import ServedModel
from nanoquant_edge.serving.opening import open_model
from tests.serving.constraint.random_schemas import random_schema

#: A schema whose texts are as long as one likes.
_ENDLESS = {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}, "minItems": 10**6}


class Timed:
    """A mask that counts the processor's seconds it takes."""

    def __init__(self, mask: GrammarMask) -> None:
        self._mask, self.seconds, self.tokens = mask, 0.0, 0

    @property
    def finished(self) -> bool:
        """Whether the text is complete."""
        return self._mask.finished

    def allowed(self) -> Any:
        """Which tokens may come next."""
        begin = time.thread_time()
        found = self._mask.allowed()
        self.seconds += time.thread_time() - begin
        self.tokens += 1
        return found

    def push(self, token: int) -> None:
        """Be told the token that was chosen."""
        begin = time.thread_time()
        self._mask.push(token)
        self.seconds += time.thread_time() - begin


def keeps(model: ServedModel, schemas: int) -> dict[str, Any]:
    """How many of the random schemas are kept to, and what compiling and masks take."""
    from jsonschema import Draft202012Validator

    ids = model.encode_text("The")
    failures: list[str] = []
    compiled, per_token = [], []
    for number in range(schemas):
        schema = random_schema(number)
        begin = time.perf_counter()
        mask = Timed(model.constrainer.mask(Grammar.json_schema(schema)))
        compiled.append(time.perf_counter() - begin)
        sampling = SamplingConfig(temperature=1.0, seed=number)
        request = Request(ids=ids, max_new_tokens=1500, sampling=sampling, mask=mask)
        text = model.writer.submit(request).result().text
        per_token.append(mask.seconds / max(mask.tokens, 1))
        try:
            Draft202012Validator(schema).validate(json.loads(text))
        except Exception as error:  # whatever is wrong with it
            failures.append(f"{number}: {text[:60]!r} {str(error)[:80]!r}")
    for line in failures[:10]:
        click.echo(line)
    return {
        "schemas": schemas,
        "valid": schemas - len(failures),
        "compile_ms": round(1000 * statistics.median(compiled), 2),
        "compile_worst_ms": round(1000 * max(compiled[1:]), 1),
        "mask_us": round(1e6 * statistics.median(per_token), 1),
    }


def price(model: ServedModel, tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a token, free and constrained."""
    ids = model.encode_text("A list of objects:")
    grammar, free, held, masks = Grammar.json_schema(_ENDLESS), [], [], []
    for number in range(rounds + 1):
        mask = Timed(model.constrainer.mask(grammar))
        for kind, times in ((None, free), (mask, held)):
            bias = dict.fromkeys(model.settings.eos_ids, -100.0)
            sampling = SamplingConfig(temperature=1.0, seed=number, logit_bias=bias)
            request = Request(ids=ids, max_new_tokens=tokens, sampling=sampling, mask=kind)
            outcome = model.writer.submit(request).result()
            if number:  # the first round is for warming up
                times.append(1000 * outcome.decode_s / (len(outcome.ids) - 1))
        masks.append(1e6 * mask.seconds / mask.tokens)
    return {
        "free_ms": round(statistics.median(free), 3),
        "constrained_ms": round(statistics.median(held), 3),
        "ratio": round(statistics.median(h / f for h, f in zip(held, free, strict=True)), 3),
        "endless_mask_us": round(statistics.median(masks), 1),
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--schemas", type=int, default=500, show_default=True)
@click.option("--tokens", type=int, default=128, show_default=True, help="Of the texts whose price is measured.")
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--append", is_flag=True, help="Add the row to docs/figures/constrained.json.")
@figures_option
def main(bundle: Path, schemas: int, append: bool, folder: Path, **given: Any) -> None:
    """Measure."""
    options = OpenOptions(device="cpu", threads=given["threads"])
    scheduling = SchedulerOptions(draft=0)
    with open_model(Target.of(bundle, options), options, scheduling=scheduling) as model:
        row: dict[str, Any] = {"model": model.settings.name, "vocabulary": model.settings.vocab_size}
        if schemas:
            row |= keeps(model, schemas)
        if given["rounds"]:
            row |= price(model, given["tokens"], given["rounds"])
    click.echo(json.dumps(row, indent=2))
    if append:
        append_rows("constrained", [row], given["rounds"], folder)


if __name__ == "__main__":
    main()
