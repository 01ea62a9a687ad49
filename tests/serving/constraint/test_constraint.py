# SPDX-License-Identifier: Apache-2.0
"""Texts keep to their form, and no form of a stranger takes the server with it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.runtimes import SamplingConfig
from nanoquant_edge.serving.constraint import Constrainer, Grammar, GrammarMask
from tests.serving.constraint.random_schemas import random_schema

pytest.importorskip("llguidance")
#: The default tests' share of the 500 schemas that `python -m benchmarks.constrained` goes through.
SCHEMAS = 60


@pytest.fixture(scope="module")
def constrainer(byte_level_folder: Path) -> Iterator[Constrainer]:
    made = Constrainer(load_tokenizer(byte_level_folder), 330, [2])
    yield made
    made.close()


def written(mask: GrammarMask, random: np.random.Generator, most: int = 3000) -> list[int]:
    """Random tokens among those that are allowed, until the text is complete."""
    ids: list[int] = []
    while not mask.finished and len(ids) < most:
        bits = np.unpackbits(mask.allowed().view(np.uint8), bitorder="little")
        token = int(random.choice(np.flatnonzero(bits)))
        if token == 2:
            return ids
        ids.append(token)
        mask.push(token)
    assert len(ids) < most
    return ids


def test_whatever_random_tokens_are_chosen_the_text_is_of_its_schema(
    constrainer: Constrainer, byte_level_folder: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tokenizer, random = load_tokenizer(byte_level_folder), np.random.default_rng(5)
    for number in range(SCHEMAS):
        schema = random_schema(number)
        text = tokenizer.decode(written(constrainer.mask(Grammar.json_schema(schema)), random))
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_regular_expressions_and_grammars(constrainer: Constrainer, byte_level_folder: Path) -> None:
    tokenizer, random = load_tokenizer(byte_level_folder), np.random.default_rng(6)
    for _ in range(5):
        text = tokenizer.decode(written(constrainer.mask(Grammar.regex(r"[a-c]{2,4}(-\d\d)?")), random))
        assert re.fullmatch(r"[a-c]{2,4}(-\d\d)?", text)
        text = tokenizer.decode(written(constrainer.mask(Grammar.lark('start: "yes" | "no" /[0-9]/')), random))
        assert re.fullmatch(r"yes|no\d", text)


def test_a_mask_has_the_width_of_the_logits_and_forgets_nothing(constrainer: Constrainer) -> None:
    grammar = Grammar.regex("ab")
    one, other = constrainer.mask(grammar), constrainer.mask(grammar)
    assert one.allowed().shape == (11,) and one.allowed().dtype == np.uint32
    before = other.allowed().copy()
    token = int(np.flatnonzero(np.unpackbits(before.view(np.uint8), bitorder="little"))[0])
    one.push(token)
    np.testing.assert_array_equal(other.allowed(), before)
    with pytest.raises(NqEdgeError, match="NQ-GRAMMAR"):
        other.push(5)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "grammar",
    [
        lambda: Grammar.json_schema({"type": "integer", "multipleOf": 123456789}),
        lambda: Grammar.json_schema({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
        lambda: Grammar.json_schema({"enum": ["x" * 100] * 5000}),
        lambda: Grammar.json_schema(deep(100)),
        lambda: Grammar.json_schema(deep(50_000)),
        lambda: Grammar.json_schema({"type": "nothing"}),
        lambda: Grammar.json_schema({"$ref": "http://127.0.0.1/schema.json"}),
        lambda: Grammar.json_schema({"allOf": [{"type": "integer"}, {"type": "string"}]}),
        lambda: Grammar.json_schema([1]),  # type: ignore[arg-type]
        lambda: Grammar.json_schema({"minimum": float("nan")}),
        lambda: Grammar.regex("(" * 60_000),
        lambda: Grammar.regex("(a"),
        lambda: Grammar.lark("start: nowhere"),
        lambda: Grammar.lark("x" * 300_000),
    ],
)
def test_what_cannot_be_used_is_refused_soon(constrainer: Constrainer, grammar: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(NqEdgeError, match=r"^\[NQ-GRAMMAR\]"):
        constrainer.mask(grammar())
    assert time.monotonic() - begin < 60
    assert not constrainer.mask(Grammar.regex("ab")).finished  # and the next one is served


def test_a_random_model_keeps_to_a_form(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    from nanoquant_edge.runtimes import Target
    from nanoquant_edge.serving import Request
    from nanoquant_edge.serving.opening import open_model

    with open_model(Target.of(tiny_bundle), slots=2) as model:
        masks = [model.constrainer.mask(Grammar.regex(f"[{letter}]{{3}}")) for letter in "abc"]
        ids, hot = model.encode_text("The"), SamplingConfig(temperature=2.0, seed=3)
        answers = [model.writer.submit(Request(ids=ids, sampling=hot, mask=mask)) for mask in masks]
        assert [answer.result().text for answer in answers] == ["aaa", "bbb", "ccc"]
        assert answers[0].result().finish_reason == "stop"
