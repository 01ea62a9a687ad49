# SPDX-License-Identifier: Apache-2.0
"""Text that a model writes itself: likely to it, one text a window or several, and later windows when asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanoquant_edge.compression.calibrate.own_text import own_windows
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from nanoquant_edge.system.progress import Progress
from tests.compression.support import dense_folder, family_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceModel]:
    with load_model(dense_folder(tmp_path_factory.mktemp("dense") / "model")) as found:
        with torch.no_grad():
            found.model.model.norm.weight.mul_(3)  # sharper than uniform
        yield found


def test_a_model_writes_windows_that_it_finds_likely(source: SourceModel) -> None:
    found = own_windows(source, 6, 40, seed=0)
    assert found.shape == (6, 40) and found.dtype == torch.int64
    assert found[:, 0].tolist() == [source.start_token] * 6
    assert len({tuple(row.tolist()) for row in found}) == 6
    assert torch.equal(found, own_windows(source, 6, 40, seed=0))
    assert not torch.equal(found, own_windows(source, 6, 40, seed=1))

    def loss(ids: torch.Tensor) -> float:
        with torch.no_grad():
            scores = source.model(ids).logits[:, :-1].log_softmax(-1)
        return float(-scores.gather(-1, ids[:, 1:, None]).mean())

    other = torch.randint(0, 320, found.shape, generator=torch.Generator().manual_seed(0))
    assert loss(found) < loss(other) - 1


def test_later_windows_are_those_of_a_longer_run(source: SourceModel) -> None:
    shown: list[str] = []
    progress = Progress(lambda _fraction, text: shown.append(text))
    assert torch.equal(
        own_windows(source, 2, 24, seed=0, first=3, progress=progress), own_windows(source, 5, 24, seed=0)[3:]
    )
    assert shown[-1].startswith("the model writes text, ") and shown[-1].endswith(" of 48 tokens")


def test_a_text_that_ends_is_followed_by_another(tmp_path: Path) -> None:
    with load_model(family_folder(tmp_path / "model", "qwen3")) as base:
        base.tokenizer.chat_template = None
        base.model.generation_config.eos_token_id = list(range(2, 60))
        found = own_windows(base, 4, 64, seed=0)
    assert any(row.tolist().count(base.start_token) > 1 for row in found)
    ends = (found[:, :-1] >= 2) & (found[:, :-1] < 60)
    assert torch.all(found[:, 1:][ends] == base.start_token)
