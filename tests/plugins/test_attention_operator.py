# SPDX-License-Identifier: Apache-2.0
"""NanoQuantAttention: every instruction set against float64, caches that move, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plugins import one_attention
from tests.plugins.conftest import Script

NEW = ("query", "key", "value")


def test_cases_agree_with_float64(isa: str, script: Script) -> None:
    rows = script("one_attention", NQ_CPU_ISA=isa)["rows"]
    assert len(rows) == 3 * len(one_attention.CASES)
    assert all(row["error"] <= row["limit"] and row["kept"] for row in rows), rows


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


@pytest.mark.parametrize("window", [0, 5, 21])
def test_pieces_equal_one_pass_to_the_bit(window: int, library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(6, 2, 32, window), library)
    whole = one_attention.make_feeds(6, 2, 32, 40, [0], 40)
    pieces = {name: array.copy() for name, array in whole.items()}
    wanted = one_attention.run(session, whole)
    for start, end in [(0, 17), (17, 18), (18, 40)]:
        part = {name: np.ascontiguousarray(pieces[name][:, start:end]) for name in ("query", "key", "value")}
        y = one_attention.run(session, {**pieces, **part, "last": np.array([end - 1], np.int32)})
        np.testing.assert_array_equal(y, wanted[:, start:end])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "window"), [(6, 2, 32, 0), (9, 3, 64, 30), (4, 1, 80, 0)])
def test_tokens_of_many_slots_in_one_call_equal_those_alone_to_the_bit(
    heads: int, kv_heads: int, dim: int, window: int, threads: int, library: str
) -> None:
    model = one_attention.make_model(heads, kv_heads, dim, window, slots=True)
    session = one_attention.make_session(model, library, threads)
    counts = [70, 1, 33]  # tokens of three sequences, in slots 3, 0 and 1 of four
    alone = [one_attention.make_feeds(heads, kv_heads, dim, count, [0], 80, seed=i) for i, count in enumerate(counts)]
    empty = np.zeros(0, np.int32)
    wanted = [one_attention.run(session, {**feeds, "slots": empty})[0] for feeds in alone]
    caches = {f"past_{part}": np.full((4, kv_heads, 80, dim), np.nan, np.float32) for part in ("key", "value")}
    tables = {name: alone[0][name] for name in ("cosines", "sines")}
    found: list[list[np.ndarray]] = [[] for _ in counts]
    done, rng = [0, 0, 0], np.random.default_rng(1)
    while any(a < b for a, b in zip(done, counts, strict=True)):
        takes = [min(int(rng.integers(0, 24)), count - at) for count, at in zip(counts, done, strict=True)]
        if not any(takes):
            continue
        rows = {name: [alone[i][name][0, done[i] : done[i] + n] for i, n in enumerate(takes)] for name in NEW}
        feeds = {name: np.ascontiguousarray(np.concatenate(parts)[None]) for name, parts in rows.items()}
        last = np.concatenate([np.arange(done[i], done[i] + n) for i, n in enumerate(takes)]).astype(np.int32)
        slots = np.repeat(np.array([3, 0, 1], np.int32), takes)
        y = one_attention.run(session, {**feeds, **caches, **tables, "last": last, "slots": slots})[0]
        for i, n in enumerate(takes):
            found[i].append(y[sum(takes[:i]) : sum(takes[:i]) + n])
            done[i] += n
    for parts, one in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), one)
    assert np.isnan(caches["past_key"][2]).all() and np.isnan(caches["past_value"][0, :, 1:]).all()


@pytest.mark.parametrize(
    ("last", "slots"),
    [([5, 6, 7], [0, 0, 4]), ([5, 6, 7], [-1, 0, 0]), ([5, 6, 12], [0, 0, 0]), ([5, -1, 7], [0, 1, 2]), ([5], [0])],
)
def test_slots_that_do_not_exist_are_refused(last: list[int], slots: list[int], library: str) -> None:
    session = one_attention.make_session(one_attention.make_model(4, 2, 16, slots=True), library)
    feeds = one_attention.make_feeds(4, 2, 16, 3, [5, 5, 5, 5], 12)
    feeds |= {name: feeds[name][:1] for name in NEW}
    feeds |= {"last": np.array(last, np.int32), "slots": np.array(slots, np.int32)}
    with pytest.raises(Exception, match="NanoQuant"):
        session.run(None, feeds)


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
