# SPDX-License-Identifier: Apache-2.0
"""Values of a stranger's JSON: the right ones come back as they are, all others are one named refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.entry import Entry

READS: dict[str, Callable[[Entry], Any]] = {
    "text": lambda entry: entry.text("x"),
    "choice": lambda entry: entry.text("x", choices=("a", "b")),
    "pattern": lambda entry: entry.text("x", pattern=re.compile("[0-9]{2}")),
    "empty": lambda entry: entry.text("x", empty=True),
    "texts": lambda entry: entry.texts("x"),
    "plain texts": lambda entry: entry.plain_texts("x", 2),
    "integer": lambda entry: entry.integer("x", 1, 9),
    "integers": lambda entry: entry.integers("x", 2),
    "number": lambda entry: entry.number("x"),
    "flag": lambda entry: entry.flag("x"),
    "entry": lambda entry: entry.entry("x"),
    "entries": lambda entry: entry.entries("x"),
    "anything": lambda entry: entry.anything("x"),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HUGE, HALF = 10**400, "\ud800"


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        ("text", "naïve 東", "naïve 東"),
        ("choice", "b", "b"),
        ("pattern", "07", "07"),
        ("empty", "", ""),
        ("texts", ["a", "b"], ("a", "b")),
        ("plain texts", ["", ""], ("", "")),
        ("integer", 9, 9),
        ("integers", [0, 5], (0, 5)),
        ("number", 1.5, 1.5),
        ("number", 3, 3),
        ("flag", False, False),
        ("anything", {"a": [1, {"b": 1e308}], "length": 10**30}, {"a": [1, {"b": 1e308}], "length": 10**30}),
    ],
)
def test_right_values_come_back(read: str, value: Any, expected: Any) -> None:
    assert READS[read](Entry({"x": value})) == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *(("text", value) for value in ("", 3, None, HALF, "x" * 5000, ["a"])),
        *(("choice", value) for value in ("c", "", ["a"], {"a": 1})),
        *(("pattern", value) for value in ("7", "077", "07\n", "²²", "٠٧")),
        *(("empty", value) for value in (None, HALF, 0)),
        *(("texts", value) for value in ("ab", ["a", "a"], ["a", ""], [3], {"a": 1}, [HALF], [["a"]])),
        *(("plain texts", value) for value in (["a"], ["a", 3], "ab", None, [HALF, ""])),
        *(("integer", value) for value in (0, 10, HUGE, -HUGE, True, 5.0, "5", None, float("nan"))),
        *(("integers", value) for value in ([1], [1, 2, 3], [1, True], [1, -1], [1, HUGE], "12", {"a": 1})),
        *(("number", value) for value in (HUGE, -HUGE, True, "1", None, float("inf"), float("nan"))),
        *(("flag", value) for value in (0, 1, "true", None, [])),
        *(("entry", value) for value in (None, [], "a", 3)),
        *(("entries", value) for value in ({"a": 1}, [], {HALF: {}})),
        *(("anything", value) for value in (None, [], {"a": HUGE}, {"a": [HALF]}, {HALF: 1}, {"a": {"b": [-HUGE]}})),
    ],
)
def test_impossible_values_are_one_named_refusal(read: str, value: Any) -> None:
    with pytest.raises(NqEdgeError, match=r"the manifest's part\.x") as caught:
        READS[read](Entry({"x": value}, "part"))
    assert caught.value.code == "NQ-BUNDLE" and len(caught.value.message) < 400


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(NqEdgeError, match="impossible"):
        Entry({"x": deep}).anything("x")


def test_missing_and_unknown_keys_are_named() -> None:
    entry = Entry({"a": 1, "b": 2}, "part", owner="the plan's", code="NQ-CKPT")
    with pytest.raises(NqEdgeError, match=r"the plan's part\.c is missing") as caught:
        entry.exactly("a", "b", "c")
    assert caught.value.code == "NQ-CKPT"
    with pytest.raises(NqEdgeError, match=r"part\.b is unknown"):
        entry.exactly("a")
    with pytest.raises(NqEdgeError, match=r"part\.x is missing"):
        entry.flag("x")
    assert "a" in entry and "x" not in entry and entry.null("x") and not entry.null("a")


@pytest.mark.parametrize("value", [None, [], "a", 3, HUGE])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(NqEdgeError, match="impossible value"):
        Entry(value)


@given(st.sampled_from(list(READS)), JSON)
def test_any_value_is_read_or_refused(read: str, value: Any) -> None:
    try:
        found = READS[read](Entry({"x": value}, "part"))
    except NqEdgeError as error:
        assert error.code == "NQ-BUNDLE" and len(str(error)) < 600
        return
    if not isinstance(found, Entry | dict):
        json.dumps(found, ensure_ascii=False).encode()  # what is let through can be written
