# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import SlotRow, open_backend
from nanoquant_edge.runtimes.single_slot import SingleSlot

IDS = [1, 5, 7, 9, 11, 30]


def test_a_backend_is_one_slot_that_can_go_back(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with open_backend(bundle, threads=1) as backend, SingleSlot(open_backend(bundle, threads=1)) as slots:
        expected = backend.forward(np.array([IDS]), positions=np.arange(6)[None])[0]
        found = slots.forward([SlotRow(0, IDS[:4], logits=4)])[0]
        np.testing.assert_allclose(found, expected[:4], atol=1e-4)
        slots.truncate(0, 2)
        assert slots.lengths.tolist() == [2]
        assert slots.forward([SlotRow(0, IDS[2:4], logits=0)])[0].shape == (0, bundle.vocab_size)
        slots.copy_prefix(0, 0, 3)
        slots.copy_prefix(0, 0, 3)
        np.testing.assert_allclose(slots.forward([SlotRow(0, IDS[3:], logits=2)])[0], expected[4:], atol=1e-4)
        slots.truncate(0, 0)
        np.testing.assert_allclose(slots.forward([SlotRow(0, IDS)])[0], expected[5:], atol=1e-4)
        with pytest.raises(NqEdgeError, match="prefixes cannot be saved"):
            slots.save(0, 2)
    with pytest.raises(NqEdgeError, match="closed"):
        slots.forward([SlotRow(0, IDS)])
