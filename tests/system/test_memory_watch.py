# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, sampled from a thread."""

from __future__ import annotations

import sys

import pytest

from nanoquant_edge.system.memory_watch import MemoryWatch


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's private memory")
def test_memory_is_watched() -> None:
    calls = []
    with MemoryWatch(lambda: calls.append(1)) as watch:
        block = bytearray(32 << 20)
        block[::4096] = b"x" * len(block[::4096])
        while not calls:
            pass
    assert watch.private > len(block) and calls
