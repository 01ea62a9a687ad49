# SPDX-License-Identifier: Apache-2.0
"""Packed words against hand-computed bytes and against their definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.formats.checkpoint import PackedLayer, pack_signs, unpack_signs, words_for
from tests.tiny import random_layer

GOLDEN = Path(__file__).parents[2] / "data/packed_words.txt"


def _golden() -> list[tuple[np.ndarray, bytes]]:
    cases = []
    for line in GOLDEN.read_text().splitlines():
        if line.startswith("#"):
            continue
        left, packed = line.split("=")
        columns, negative = left.split(":")
        row = np.ones(int(columns), np.int8)
        row[[int(column) for column in negative.split()]] = -1
        cases.append((row, bytes.fromhex(packed.strip())))
    return cases


@pytest.mark.parametrize(("row", "packed"), _golden())
def test_golden_bytes(row: np.ndarray, packed: bytes) -> None:
    assert pack_signs(row[None]).astype("<i4").tobytes() == packed
    words = np.frombuffer(packed, "<i4")[None].astype(np.int32)
    np.testing.assert_array_equal(unpack_signs(words, row.size)[0], row)


@given(rows=st.integers(1, 9), columns=st.integers(1, 130), seed=st.integers(0, 1 << 16))
def test_round_trip_and_definition(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], np.int8), (rows, columns))
    words = pack_signs(signs)
    assert words.dtype == np.int32
    assert words.shape == (rows, words_for(columns))
    np.testing.assert_array_equal(unpack_signs(words, columns), signs)
    row, column = int(rng.integers(rows)), int(rng.integers(columns))
    bit = (int(words[row, column // 32]) & 0xFFFFFFFF) >> (column % 32) & 1
    assert bit == (signs[row, column] < 0)
    tail = 32 * words.shape[1] - columns
    assert (words[:, -1].view(np.uint32) >> np.uint64(32 - tail)).sum() == 0 or tail == 0


@given(columns=st.integers(1, 95).filter(lambda c: c % 32), seed=st.integers(0, 99))
def test_tail_bits_are_ignored(columns: int, seed: int) -> None:
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (3, columns))
    words = pack_signs(signs)
    dirty = words.copy()
    dirty[:, -1] |= np.int32(-1) << np.int32(columns % 32)
    assert not np.array_equal(dirty, words)
    np.testing.assert_array_equal(unpack_signs(dirty, columns), signs)


def test_zero_is_positive_and_any_real_type_packs() -> None:
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int64):
        np.testing.assert_array_equal(pack_signs(np.array([[-2, 0, 3]], dtype)), [[1]])
    np.testing.assert_array_equal(pack_signs(np.array([[-0.0, -1e-45]], np.float32)), [[2]])


def test_layout_in_memory_does_not_matter() -> None:
    signs = np.random.default_rng(0).standard_normal((40, 50))
    np.testing.assert_array_equal(pack_signs(np.asfortranarray(signs)), pack_signs(signs))
    words = pack_signs(signs)
    np.testing.assert_array_equal(unpack_signs(np.asfortranarray(words), 50), unpack_signs(words, 50))


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((1, 2, 3)), np.array([[np.nan]])])
def test_pack_refuses(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="sign matrix"):
        pack_signs(matrix)


@pytest.mark.parametrize(
    ("words", "columns"),
    [(np.zeros((2, 2), np.int32), 32), (np.zeros((2, 1), np.int64), 32), (np.zeros(2, np.int32), 64)],
)
def test_unpack_refuses(words: np.ndarray, columns: int) -> None:
    with pytest.raises(ValueError, match="need int32 words"):
        unpack_signs(words, columns)


def test_layer_product_and_bits() -> None:
    layer = random_layer(np.random.default_rng(0), 33, 40, 50, mid=True, bias=True)
    u = unpack_signs(layer.u_packed, 50).astype(float)
    v = unpack_signs(layer.v_packed, 40).astype(float)
    expected = np.diag(layer.scale_out.astype(float)) @ u @ np.diag(layer.scale_mid.astype(float)) @ v
    np.testing.assert_allclose(layer.dense(), expected @ np.diag(layer.scale_in.astype(float)), rtol=1e-12)
    assert layer.stored_bits == 32 * (33 * 2 + 50 * 2) + 16 * (33 + 40 + 50)


@pytest.mark.parametrize(
    ("part", "shape", "message"),
    [
        ("u_packed", (33, 3), "does not fit 33 x rank 50"),
        ("v_packed", (50, 1), "does not fit 40 columns"),
        ("scale_mid", (49,), "scale_mid"),
        ("bias", (1,), "bias"),
    ],
)
def test_layer_refuses_contradictions(part: str, shape: tuple[int, ...], message: str) -> None:
    layer = random_layer(np.random.default_rng(0), 33, 40, 50, mid=True, bias=True)
    parts = {name: getattr(layer, name) for name in PackedLayer.__dataclass_fields__}
    parts[part] = np.zeros(shape, parts[part].dtype)
    with pytest.raises(ValueError, match=message):
        PackedLayer(**parts)
