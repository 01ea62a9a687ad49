# SPDX-License-Identifier: Apache-2.0
"""The operators on 8- and 4-bit tables: every instruction set against float64, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.plugins import one_table
from tests.plugins.conftest import Script, check_grid

onnxruntime = pytest.importorskip("onnxruntime")


def test_grid_is_within_the_limits(isa: str, script: Script) -> None:
    check_grid(script("one_table", NQ_CPU_ISA=isa), 3 * len(one_table.grid()))


def test_grid_on_the_lowest_supported_onnxruntime(lowest_python: str, script: Script) -> None:
    check_grid(script("one_table", python=lowest_python), 3 * len(one_table.grid()))


def test_threads_change_nothing(library: str) -> None:
    table = one_table.make_table(5000, 96, 4, 32, np.float16)
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    feed = {"x": x, "ids": np.zeros((1, 1), np.int64)}
    results = [one_table.make_session(one_table.make_model(table), library, n).run(["y"], feed)[0] for n in (1, 3)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("bits", "group"), [(8, 1 << 20), (8, 64), (4, 32)])
def test_rows_in_one_call_are_those_of_calls_of_one(bits: int, group: int, library: str) -> None:
    session = one_table.make_session(one_table.make_model(one_table.make_table(1003, 100, bits, group)), library)
    x = np.random.default_rng(0).standard_normal((19, 100)).astype(np.float32)
    ids = np.zeros((1, 1), np.int64)
    single = [session.run(["y"], {"x": row[None], "ids": ids})[0] for row in x]
    for count in (*range(2, 12), 19):
        together = session.run(["y"], {"x": x[:count], "ids": ids})[0]
        np.testing.assert_array_equal(together, np.concatenate(single[:count]))


def test_no_rows_give_no_rows(library: str) -> None:
    session = one_table.make_session(one_table.make_model(one_table.make_table(9, 40, 8, 1 << 20)), library)
    feed = {"x": np.zeros((0, 40), np.float32), "ids": np.zeros((1, 0), np.int64)}
    y, e = session.run(["y", "e"], feed)
    assert y.shape == (0, 9) and e.shape == (1, 0, 40)


@pytest.mark.parametrize("index", [-1, 9, 2**62])
def test_an_index_outside_the_table_is_refused(library: str, index: int) -> None:
    session = one_table.make_session(one_table.make_model(one_table.make_table(9, 40, 4, 32)), library)
    feed = {"x": np.zeros((1, 40), np.float32), "ids": np.array([[0, index]], np.int64)}
    with pytest.raises(Exception, match=r"an index is not in \[0, 9\)"):
        session.run(["e"], feed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits 5"),
        ({"bits": 0}, "attribute 'bits' is 0"),
        ({"group_size": 16}, "group_size 16"),
        ({"columns": 2**31}, "attribute 'columns'"),
        ({"columns": 1 << 20, "group_size": 32}, "columns 1048576"),
    ],
)
def test_attributes_outside_the_schema_are_refused_with_the_session(
    library: str, changes: dict[str, int], message: str
) -> None:
    table = one_table.make_table(9, 40, 8, 32)
    with pytest.raises(Exception, match=message):
        one_table.make_session(one_table.make_model(table, **changes), library)


@pytest.mark.parametrize("part", ["codes", "scales"])
def test_data_smaller_than_the_attributes_promise_is_refused(library: str, part: str) -> None:
    table = one_table.make_table(9, 64, 8, 32)
    short = replace(table, **{part: getattr(table, part)[:, :-1].copy()})
    session = one_table.make_session(one_table.make_model(short), library)
    feed = {"x": np.zeros((1, 64), np.float32), "ids": np.zeros((1, 1), np.int64)}
    for output in ("e", "y"):
        with pytest.raises(Exception, match=f"{part} has another type or shape"):
            session.run([output], feed)
    fewer = replace(table, scales=table.scales[:-1].copy())
    with pytest.raises(Exception, match="unequal rows"):
        one_table.make_session(one_table.make_model(fewer), library).run(["y"], feed)
