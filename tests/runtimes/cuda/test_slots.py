# SPDX-License-Identifier: Apache-2.0
"""Slots on a GPU, over the stand-in: any of them in one call, shared prefixes, saving and loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files
from nanoquant_edge.runtimes.cuda.slots import CudaSlots
from nanoquant_edge.runtimes.slots import SlotRow, Slots
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("slots") / "checkpoint"
    return tiny_checkpoint(folder, seed=2, tie_word_embeddings=False, max_position_embeddings=400)


@pytest.fixture(params=[16, 8], ids=["16 bits", "8 bits"])
def slots(request: pytest.FixtureRequest, checkpoint: Checkpoint, stand_in: Path) -> Iterator[CudaSlots]:
    with CudaSlots(checkpoint_files(checkpoint), count=4, cache_bits=request.param) as opened:
        yield opened


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, count).tolist()


def alone(slots: CudaSlots, tokens: list[int]) -> np.ndarray:
    """Logits of a text's last token, in a slot that is empty before and after."""
    (logits,) = slots.forward([SlotRow(3, tokens)])
    slots.truncate(3, 0)
    return logits[0]


def close_to(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected))


def test_rows_of_all_kinds_in_one_call(slots: CudaSlots) -> None:
    assert isinstance(slots, Slots) and slots.together
    one, two, three = ids(40, 1), ids(7, 2), ids(150, 3)
    slots.forward([SlotRow(0, one[:-1], logits=0), SlotRow(2, three[:100], logits=0)])
    found = slots.forward([SlotRow(2, three[100:], logits=3), SlotRow(0, one[-1:]), SlotRow(1, two)])
    assert [len(logits) for logits in found] == [3, 1, 1]
    assert slots.lengths.tolist() == [40, 7, 150, 0]
    assert close_to(found[0][2], alone(slots, three))
    assert close_to(found[1][0], alone(slots, one))
    assert close_to(found[2][0], alone(slots, two))
    for step in range(3):  # the third is a graph
        rows = [SlotRow(0, ids(1, 10 + step)), SlotRow(2, ids(1, 20 + step))]
        last = slots.forward(rows)
    assert close_to(last[1][0], alone(slots, three + [ids(1, 20 + step)[0] for step in range(3)]))


def test_a_shared_prefix_is_copied_only_where_it_is_written(slots: CudaSlots) -> None:
    text = ids(300)
    slots.forward([SlotRow(0, text, logits=0)])
    used = slots._open.cache.pages - slots._open.cache.free
    slots.copy_prefix(0, 1, 280)
    assert slots._open.cache.pages - slots._open.cache.free == used
    (found,) = slots.forward([SlotRow(1, [5])])
    # Two whole pages are shared; the third was written into.
    assert slots._open.cache.pages - slots._open.cache.free == used + 1
    assert close_to(found[0], alone(slots, [*text[:280], 5]))
    (again,) = slots.forward([SlotRow(0, [7])])
    assert close_to(again[0], alone(slots, [*text, 7]))
    slots.truncate(0, 0)
    (more,) = slots.forward([SlotRow(1, [9])])
    assert close_to(more[0], alone(slots, [*text[:280], 5, 9]))


def test_a_truncated_slot_goes_on_from_there(slots: CudaSlots) -> None:
    text = ids(200)
    slots.forward([SlotRow(0, text, logits=0)])
    slots.truncate(0, 130)
    assert slots.lengths[0] == 130
    (found,) = slots.forward([SlotRow(0, [3])])
    assert close_to(found[0], alone(slots, [*text[:130], 3]))


def test_saved_tokens_come_back(slots: CudaSlots) -> None:
    text = ids(150)
    slots.forward([SlotRow(0, text, logits=0)])
    saved = slots.save(0, 140)
    assert saved["0.key"].shape == (2, 140, 16)
    slots.load(1, saved, 140)
    assert slots.lengths.tolist()[:2] == [150, 140]
    (found,) = slots.forward([SlotRow(1, [3])])
    assert close_to(found[0], alone(slots, [*text[:140], 3]))


def test_what_was_saved_elsewhere_is_refused(slots: CudaSlots) -> None:
    slots.forward([SlotRow(0, ids(20), logits=0)])
    good = slots.save(0, 20)
    bad: list[dict[str, Any]] = [
        {**good, "9.key": good["0.key"]},
        {name: value for name, value in good.items() if name != "1.value"},
        {**good, "0.key": good["0.key"][:, :19]},
        {**good, "0.key": good["0.key"].astype(np.float64)},
    ]
    scaled = next(name for name, value in good.items() if value.dtype == np.float16)
    bad.append({**good, scaled: np.full_like(good[scaled], np.inf)})
    for arrays in bad:
        with pytest.raises(NqEdgeError) as caught:
            slots.load(1, arrays, 20)
        assert caught.value.code == "NQ-OPTION"
    assert slots.lengths[1] == 0


def test_memory_is_told(slots: CudaSlots) -> None:
    form = slots._open.plan.form
    before = slots.memory
    assert before.held == 0 and before.token * form.page_tokens == form.page
    slots.forward([SlotRow(0, ids(20), logits=0)])
    assert before.most >= slots.memory.held > 0
    slots.close()
    assert slots.memory.held == 0
