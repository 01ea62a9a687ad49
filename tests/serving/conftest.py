# SPDX-License-Identifier: Apache-2.0
"""One server over the tiny bundle for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def address(tiny_bundle: Path) -> Iterator[str]:
    """Where it listens."""
    pytest.importorskip("uvicorn")
    from tests.serving.running import running

    with running(tiny_bundle) as found:
        yield found
