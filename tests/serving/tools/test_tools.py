# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.serving.constraint import Constrainer
from nanoquant_edge.serving.tools import Call, CallReader, ToolFormat, calls_grammar, explained, find_format
from nanoquant_edge.serving.tools.formats import FORMATS

HERMES, MISTRAL, LLAMA = FORMATS
FUNCTIONS = (
    {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["<x>", "]"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
    {"name": "now"},
)
ADD = {"a": 5, "b": "<x>"}


def form(format: ToolFormat, calls: list[tuple[str, dict[str, object]]]) -> str:
    """Calls as a model writes them."""
    values = [{"name": name, format.arguments: arguments} for name, arguments in calls]
    if format.listed:
        return f"{format.begin}{format.space}{json.dumps(values)}{format.end}"
    return "\n".join(f"{format.begin}{format.space}{json.dumps(v)}{format.space}{format.end}" for v in values)


def read(format: ToolFormat, pieces: list[str]) -> list[str | Call]:
    reader = CallReader(format, ["add", "now"])
    found = [entry for piece in pieces for entry in reader.push(piece)] + reader.flush()
    joined: list[str | Call] = []
    for entry in found:
        if isinstance(entry, str) and joined and isinstance(joined[-1], str):
            joined[-1] += entry
        else:
            joined.append(entry)
    return joined


@given(st.data())
def test_calls_are_found_however_the_text_is_cut(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(FORMATS))
    before = data.draw(st.sampled_from(["", "Well. ", "a <tool", "x [TOOL"])) if format.begin else ""
    several = data.draw(st.booleans()) and bool(format.begin)
    text = before + form(format, [("add", ADD), ("now", {})] if several else [("add", ADD)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [entry for entry in read(format, pieces) if not isinstance(entry, str) or entry.strip()]
    calls = [Call("add", json.dumps(ADD)), *([Call("now", "{}")] if several else [])]
    assert found == [*([before] if before else []), *calls]


@given(st.data())
def test_text_that_calls_nothing_stays_as_it_is(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(FORMATS))
    parts = [
        format.begin,
        format.end,
        "{",
        "}",
        "[",
        "]",
        '"',
        "<",
        ">",
        "a",
        "\n",
        '{"name": "no"}',
        '{"name": "add", ',
    ]
    pieces = data.draw(st.lists(st.sampled_from(parts), max_size=12))
    assert "".join(str(entry) for entry in read(format, pieces)) == "".join(pieces)


@pytest.mark.parametrize(
    ("template", "name", "shown"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes", True),
        ("{{ tools | tojson }}[TOOL_CALLS]", "mistral", True),
        ('{{ tools }}"parameters"<|python_tag|>ipython', "llama", True),
        ("{{ tools }} in a form that nobody knows", "explained", False),
        ("{{ messages }}", "explained", False),
        (None, "explained", False),
    ],
)
def test_the_template_decides_about_the_form(template: str | None, name: str, shown: bool) -> None:
    assert (find_format(template).name, find_format(template).shown) == (name, shown)


def test_a_template_without_functions_gets_them_in_the_system_message() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": ADD}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "5?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "6", "tool_call_id": "1"},
    ]
    told = explained(messages, FUNCTIONS, HERMES)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be kind.") and '"description": "Add."' in told[0]["content"]
    assert read(HERMES, [told[2]["content"]]) == [Call("add", json.dumps(ADD))]
    assert "6" in told[3]["content"]


@pytest.fixture(scope="module")
def constrainer(byte_level_folder: Path) -> Iterator[Constrainer]:
    pytest.importorskip("llguidance")
    made = Constrainer(load_tokenizer(byte_level_folder), 320, [2])
    yield made
    made.close()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("special", [False, True])
def test_random_tokens_under_the_grammar_are_calls(
    constrainer: Constrainer, byte_level_folder: Path, format: ToolFormat, special: bool
) -> None:
    """With marks as text and, where there are any, as the special token 4."""
    tokenizer, random = load_tokenizer(byte_level_folder), np.random.default_rng(1)
    marks = {format.begin: 4} if special and format.begin else {}
    for several in (False, True):
        grammar = calls_grammar(format, FUNCTIONS, must_call=True, several=several, special=marks)
        for _ in range(3):
            mask, ids = constrainer.mask(grammar), []
            while not mask.finished and not (mask.complete and len(ids) > 150) and len(ids) < 600:
                bits = np.unpackbits(mask.allowed().view(np.uint8), bitorder="little")
                allowed = np.flatnonzero(bits)
                ids.append(int(random.choice(allowed)))
                if ids[-1] == 2:
                    break
                mask.push(ids[-1])
            pieces = [format.begin if index in marks.values() else "" for index in ids]
            text = "".join(mark or tokenizer.decode([i]) for mark, i in zip(pieces, ids, strict=True))
            found = [entry for entry in read(format, [text]) if not isinstance(entry, str) or entry.strip()]
            assert found and all(isinstance(entry, Call) for entry in found), text
            assert several or len(found) == 1


def test_any_text_is_allowed_where_nothing_must_be_called(constrainer: Constrainer, byte_level_folder: Path) -> None:
    tokenizer = load_tokenizer(byte_level_folder)
    for format in (HERMES, MISTRAL):
        mask = constrainer.mask(calls_grammar(format, FUNCTIONS, must_call=False, several=True, special={}))
        for index in tokenizer.encode("Größe: 3 < 4 [and] so on.\n"):
            mask.push(index)
        assert mask.complete and not mask.finished
