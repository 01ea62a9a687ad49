# SPDX-License-Identifier: Apache-2.0
"""NanoQuantAttention: every instruction set against float64, caches that move, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plugins import one_attention
from tests.plugins.conftest import Script


def test_cases_agree_with_float64(isa: str, script: Script) -> None:
    rows = script("one_attention", NQ_CPU_ISA=isa)["rows"]
    assert len(rows) == 2 * len(one_attention.CASES)
    assert all(row["error"] <= 1e-5 and row["kept"] for row in rows), rows


def test_present_may_lie_elsewhere(library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(4, 2, 16), library)
    feeds = one_attention.make_feeds(4, 2, 16, 3, [5], 12)
    before = {name: array.copy() for name, array in feeds.items()}
    y, keys, values = session.run(None, feeds)
    assert all(np.array_equal(feeds[name], array, equal_nan=True) for name, array in before.items())
    in_place = one_attention.run(session, feeds)
    np.testing.assert_array_equal(y, in_place)
    np.testing.assert_array_equal(keys, feeds["past_key"])
    np.testing.assert_array_equal(values, feeds["past_value"])


def test_pieces_equal_one_pass(library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(6, 2, 32), library)
    whole = one_attention.make_feeds(6, 2, 32, 40, [0], 40)
    pieces = {name: array.copy() for name, array in whole.items()}
    wanted = one_attention.run(session, whole)
    for start, end in [(0, 17), (17, 18), (18, 40)]:
        part = {name: np.ascontiguousarray(pieces[name][:, start:end]) for name in ("query", "key", "value")}
        y = one_attention.run(session, {**pieces, **part, "last": np.array([end - 1], np.int32)})
        np.testing.assert_allclose(y, wanted[:, start:end], rtol=0, atol=2e-6)


def test_a_prompt_padded_on_the_right_starts_at_zero(library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(2, 1, 16), library)
    feeds = one_attention.make_feeds(2, 1, 16, 6, [0], 8)
    short = {name: array.copy() for name, array in feeds.items()}
    short["last"] = np.array([2], np.int32)
    wanted, y = one_attention.run(session, feeds), one_attention.run(session, short)
    np.testing.assert_allclose(y[:, :3], wanted[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": None},
        {"num_heads": 5},
        {"kv_num_heads": 0},
        {"kv_num_heads": 1 << 62},
        {"head_dim": 24},
        {"head_dim": 1 << 40},
        {"window": -1},
        {"scale": None},
        {"scale": 0.0},
        {"scale": float("nan")},
    ],
    ids=str,
)
def test_bad_attributes_are_refused(changes: dict[str, Any], library: str) -> None:
    with pytest.raises(Exception, match="NanoQuant"):
        one_attention.make_session(one_attention.make_model(4, 2, 16, **changes), library)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("query", (1, 3, 63)),
        ("key", (1, 2, 32)),
        ("value", (2, 3, 32)),
        ("past_key", (1, 2, 11, 16)),
        ("past_value", (1, 1, 12, 16)),
        ("cosines", (12, 16)),
        ("cosines", (6, 8)),
        ("last", (2,)),
        ("past_key", (1, 2, 12, 0)),
    ],
)
def test_shapes_that_contradict_each_other_are_refused(name: str, shape: tuple[int, ...], library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(4, 2, 16), library)
    feeds = one_attention.make_feeds(4, 2, 16, 3, [5], 12)
    feeds[name] = np.zeros(shape, feeds[name].dtype)
    with pytest.raises(Exception, match="NanoQuant"):
        session.run(None, feeds)


@pytest.mark.parametrize("last", [-1, -(2**31), 12, 2**31 - 1])
def test_positions_outside_of_the_cache_are_refused(last: int, library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(4, 2, 16), library)
    feeds = one_attention.make_feeds(4, 2, 16, 3, [5], 12)
    feeds["last"] = np.array([last], np.int32)
    with pytest.raises(Exception, match="do not fit a cache"):
        session.run(None, feeds)


@pytest.mark.parametrize("rows", [(0, 3), (1, 0)])
def test_nothing_in_nothing_out(rows: tuple[int, int], library: str) -> None:
    batch, count = rows
    session = one_attention.make_session(one_attention.make_model(4, 2, 16), library)
    feeds = one_attention.make_feeds(4, 2, 16, 1, [5], 12)
    for name in ("query", "key", "value"):
        feeds[name] = np.zeros((batch, count, feeds[name].shape[-1]), np.float32)
    for name in ("past_key", "past_value", "last"):
        feeds[name] = feeds[name][:batch]
    assert session.run(None, feeds)[0].shape == (batch, count, 64)
