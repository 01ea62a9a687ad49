# SPDX-License-Identifier: Apache-2.0
"""Layout 1 against hand-computed words, against its definition lane by lane, and there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.formats.checkpoint import from_tiles, pack_signs, tiles_shape, to_tiles

GOLDEN = Path(__file__).parents[2] / "data/tiles_16x256.txt"
LINES = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("line", LINES)
def test_golden_words(line: str) -> None:
    left, right = line.split("=")
    size, entries = left.split(":")
    rows, columns = map(int, size.split("x"))
    signs = np.ones((rows, columns), np.int8)
    for entry in entries.split():
        row, column = map(int, entry.split(","))
        signs[row, column] = -1
    tiles = to_tiles(pack_signs(signs), columns)
    found = {i: int(word) & 0xFFFFFFFF for i, word in enumerate(tiles.reshape(-1)) if word}
    assert found == {int(i): int(word, 16) for i, word in (item.split(":") for item in right.split())}


@given(rows=st.integers(1, 70), columns=st.integers(1, 800), seed=st.integers(0, 1 << 16))
def test_round_trip_and_definition(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    garbage = rng.integers(-(2**31), 2**31, (rows, -(-columns // 32)), dtype=np.int64).astype(np.int32)
    tiles = to_tiles(garbage, columns)
    assert tiles.dtype == np.int32
    assert tiles.shape == tiles_shape(rows, columns) == (-(-rows // 16), 128 * -(-columns // 256))
    words = garbage.copy()
    if columns % 32:
        words[:, -1] &= (1 << columns % 32) - 1
    np.testing.assert_array_equal(from_tiles(tiles, rows, columns), words)
    # One word at random, by the words of docs/OPERATOR.md.
    lane, part = int(rng.integers(32)), int(rng.integers(4))
    tile_row, tile_column = int(rng.integers(tiles.shape[0])), int(rng.integers(tiles.shape[1] // 128))
    row = 16 * tile_row + lane // 4 + 8 * (part % 2)
    word = 8 * tile_column + lane % 4 + 4 * (part // 2)
    inside = row < rows and word < words.shape[1]
    assert tiles[tile_row, 128 * tile_column + 4 * lane + part] == (words[row, word] if inside else 0)


def test_garbage_past_the_matrix_is_dropped_on_the_way_back() -> None:
    tiles = np.full(tiles_shape(3, 40), -1, np.int32)
    assert from_tiles(tiles, 3, 40).tolist() == [[-1, 255]] * 3


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        (np.zeros((2, 2), np.int32), 32),
        (np.zeros((2, 2), np.int64), 64),
        (np.zeros(2, np.int32), 64),
        (np.zeros((2, 0), np.int32), 0),
    ],
)
def test_wrong_words_are_refused(words: np.ndarray, columns: int) -> None:
    with pytest.raises(ValueError, match="columns need int32 words"):
        to_tiles(words, columns)


@pytest.mark.parametrize(("rows", "columns"), [(17, 256), (16, 257), (0, 256), (16, 0)])
def test_wrong_tiles_are_refused(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match="signs need int32 tiles"):
        from_tiles(np.zeros((1, 128), np.int32), rows, columns)
