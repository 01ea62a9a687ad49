# SPDX-License-Identifier: Apache-2.0
"""What a model will take of a GPU's memory, before anything is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.cuda.cache import CacheForm
from nanoquant_edge.runtimes.cuda.plan import WORK_BYTES, MemoryPlan
from tests.tiny import tiny_checkpoint

#: A page of Llama-3.2-1B: 16 blocks x keys and values x 8 heads x 128 tokens x 64 channels x 2 bytes.
FORM = CacheForm(16, 8, 64)
PLAN = MemoryPlan(weights=650_000_000, loading=40_000_000, work=90_000_000, form=FORM, limit=131_072, sequences=1)


def test_a_page_is_what_its_tokens_take() -> None:
    assert FORM.page == 16 * 2 * 8 * 128 * 64 * 2
    eight = CacheForm(16, 8, 64, bits=8)
    assert eight.page == FORM.page // 2 + 16 * 2 * 8 * 128 * 2  # codes, and a float16 scale a token and head
    assert [FORM.pages(tokens) for tokens in (1, 128, 129)] == [1, 1, 2]


def test_a_context_that_fits_is_given_and_one_that_does_not_is_refused() -> None:
    assert PLAN.context(None, free=80 << 30) == 131_072
    free = 2_000_000_000
    fits = PLAN.context(None, free)
    assert 0 < fits < 131_072 and fits % 128 == 0
    assert PLAN.bytes(fits) + (64 << 20) <= free < PLAN.bytes(fits + 128) + (64 << 20)
    assert PLAN.context(fits, free) == fits
    with pytest.raises(NqEdgeError) as caught:
        PLAN.context(fits + 1, free)
    assert caught.value.code == "NQ-MEMORY" and f"{fits} tokens would fit" in str(caught.value)
    assert "--cache-bits 8" in str(caught.value)
    with pytest.raises(NqEdgeError, match="131072") as caught:
        PLAN.context(131_073, free)
    assert caught.value.code == "NQ-OPTION"
    with pytest.raises(NqEdgeError, match="even for one page"):
        PLAN.context(None, free=760_000_000)


def test_several_sequences_share_what_is_free() -> None:
    several = MemoryPlan(PLAN.weights, PLAN.loading, PLAN.work, FORM, PLAN.limit, sequences=4)
    assert abs(several.fitting(3_000_000_000) - PLAN.fitting(3_000_000_000) / 4) <= 128


def test_what_is_taken_is_what_was_planned(tmp_path: Path, stand_in: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    with CudaBackend.from_checkpoint(checkpoint, max_context=100) as backend:
        plan = backend.engine.plan
        assert backend.device_bytes == plan.weights + backend.engine.workspace.size
        assert backend.engine.workspace.size <= plan.work <= WORK_BYTES
