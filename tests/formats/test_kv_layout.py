# SPDX-License-Identifier: Apache-2.0
"""One cache under two spellings; values from strangers."""

from __future__ import annotations

from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.entry import Entry
from nanoquant_edge.formats.kv_layout import KvLayout

KV = KvLayout(2, 3, 16, "float16", 96, in_place=False)


def manifest(changes: Any = None) -> Entry:
    return Entry({**KV.to_manifest(), **(changes or {})}, "kv")


def test_both_spellings_are_those_of_the_documents() -> None:
    assert KV.to_manifest() == {"layers": 2, "heads": 3, "head_dim": 16, "dtype": "float16", "max_capacity": 96}
    engine = {"layers": 2, "kv_heads": 3, "head_dim": 16, "capacity": 96, "dtype": "float16", "in_place": False}
    assert KV.to_engine() == engine and list(KV.to_engine()) == list(engine)
    assert KvLayout.from_engine(Entry(engine, "engine.kv")) == KV
    assert KvLayout.from_manifest(manifest(), "trt103") == KV
    assert KvLayout.from_manifest(manifest(), "ort").in_place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, "kv.layers has the impossible value '0'"),
        ({"layers": (1 << 31) - 1}, "kv.layers"),  # a name is made for each
        ({"heads": 1 << 30}, "kv.heads"),
        ({"heads": True}, "kv.heads"),
        ({"head_dim": 16.0}, "kv.head_dim"),
        ({"max_capacity": 1 << 31}, "kv.max_capacity"),
        ({"dtype": "float64"}, "kv.dtype"),
        ({"dtype": ["float16"]}, "kv.dtype"),
        ({"capacity": 5}, "kv.capacity is unknown"),
        ({"in_place": True}, "kv.in_place is unknown"),
        ({3: 5}, "kv.3 is unknown"),
    ],
)
def test_impossible_values_are_named(changes: dict[Any, Any], words: str) -> None:
    with pytest.raises(NqEdgeError, match=words) as caught:
        KvLayout.from_manifest(manifest(changes), "ort")
    assert caught.value.code == "NQ-BUNDLE"
