# SPDX-License-Identifier: Apache-2.0
"""A scheduler over fake slots, and one server over a tiny model for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from nanoquant_edge.formats.tokenizer import Tokenizer, load_tokenizer
from nanoquant_edge.serving import Scheduler, SchedulerOptions
from tests.serving.fake_slots import FakeSlots


class Make(Protocol):
    """Opens a scheduler over fake slots, closed at the end of the test."""

    def __call__(
        self, *, eos_ids: tuple[int, ...] = (), slots: dict[str, Any] | None = None, **options: Any
    ) -> Any: ...


@pytest.fixture(scope="session")
def tokenizer(byte_level_folder: Path) -> Tokenizer:
    return load_tokenizer(byte_level_folder)


@pytest.fixture
def make(tokenizer: Tokenizer) -> Iterator[Make]:
    opened: list[Scheduler] = []

    def start(*, eos_ids: tuple[int, ...] = (), slots: dict[str, Any] | None = None, **options: Any) -> Any:
        fake = FakeSlots(**(slots or {}))
        opened.append(Scheduler(fake, tokenizer, eos_ids=eos_ids, options=SchedulerOptions(**options)))
        return opened[-1], fake

    yield start
    for scheduler in opened:
        scheduler.close()


@pytest.fixture(scope="session")
def roomy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that has room for functions and their schemas."""
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("roomy")
    export_onnx(tiny_checkpoint(folder / "checkpoint", max_position_embeddings=2048), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def address(roomy_bundle: Path) -> Iterator[str]:
    """Where it listens."""
    pytest.importorskip("uvicorn")
    from tests.serving.running import running

    with running(roomy_bundle) as found:
        yield found
