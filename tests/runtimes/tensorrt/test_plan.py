# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.runtimes.tensorrt.plan import attention_mask, decodes, plan_row
from tests.runtimes.tensorrt.conftest import CAPACITY, engine_info


@given(st.data())
def test_pieces_cover_the_row_within_the_profile_and_pick_every_wanted_place_once(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 80))
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), max_size=90)), dtype=np.int64)
    longest, most = data.draw(st.integers(1, 32)), data.draw(st.integers(1, 8))
    info = engine_info()
    prefill = replace(info.profiles["prefill"], sequence=(1, 1, longest), positions=(1, 1, most))
    info = replace(info, profiles={**info.profiles, "prefill": prefill})
    pieces = plan_row(info, length, positions)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == length
    picked: list[int] = []
    for piece in pieces:
        count = piece.stop - piece.start
        assert prefill.holds(1, count, piece.picks.size)
        assert piece.picks.min() >= 0 and piece.picks.max() < count
        if piece.wanted:
            picked += (piece.picks + piece.start).tolist()
    assert picked == sorted(set(positions.tolist()))


def test_one_token_for_each_sequence_is_a_decode_step() -> None:
    info = engine_info()
    assert decodes(info, 1, 1) and decodes(info, 4, 1)
    assert not decodes(info, 5, 1) and not decodes(info, 1, 2)


def test_the_mask_has_the_profiles_width() -> None:
    mask = attention_mask(np.array([3, 1]), CAPACITY)
    assert mask.shape == (2, CAPACITY) and mask.dtype == np.int64
    assert mask.sum(1).tolist() == [3, 1] and mask[0, :3].all() and mask[1, 0]
