# SPDX-License-Identifier: Apache-2.0
"""Windows of conversations: in the model's own format, special tokens as tokens, the same for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.calibrate.conversations import conversation_windows, has_chat_format
from nanoquant_edge.compression.calibrate.instructions import follow_ups, instructions
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from nanoquant_edge.system.progress import Progress
from tests.compression.support import dense_folder, family_folder

TEXT = " ".join(f"word{index}" for index in range(400))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceModel]:
    with load_model(dense_folder(tmp_path_factory.mktemp("dense") / "model")) as found:
        yield found


def windows_of(source: SourceModel, seed: int = 0, text: str | None = None) -> torch.Tensor:
    return conversation_windows(source.model, source.tokenizer, 3, 96, seed=seed, text=text, progress=Progress())


def test_windows_begin_with_a_conversation_in_the_models_format(source: SourceModel) -> None:
    windows = windows_of(source)
    assert windows.shape == (3, 96) and windows.dtype == torch.int64
    start, user = source.tokenizer.convert_tokens_to_ids("<|im_start|>"), source.tokenizer("user\n")["input_ids"]
    for window in windows.tolist():
        assert window[: 1 + len(user)] == [start, *user]


def test_the_seed_decides_and_the_callers_random_numbers_go_on(source: SourceModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = windows_of(source)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, windows_of(source))
    assert not torch.equal(first, windows_of(source, seed=1))


def test_prompts_that_a_table_of_positions_does_not_hold_have_no_answer(tmp_path: Path) -> None:
    with load_model(family_folder(tmp_path / "m", "opt", max_position_embeddings=64)) as short:
        windows = conversation_windows(short.model, short.tokenizer, 3, 64, seed=0, text=TEXT, progress=Progress())
    assert windows.shape == (3, 64)


def test_a_template_that_fails_is_named(source: SourceModel) -> None:
    class Failing:
        chat_template = "{{ 1 / 0 }}"

        def apply_chat_template(self, *_arguments: Any, **_keywords: Any) -> list[int]:
            raise ZeroDivisionError("division by zero")

    with pytest.raises(NqEdgeError, match="division by zero") as caught:
        conversation_windows(source.model, Failing(), 1, 32, seed=0, text=None, progress=Progress())
    assert caught.value.code == "NQ-TEMPLATE"


def test_only_a_tokenizer_with_a_template_has_a_chat_format(source: SourceModel, tmp_path: Path) -> None:
    assert has_chat_format(source.tokenizer)
    assert not has_chat_format(object())


def test_instructions_ask_about_the_text_where_there_is_one() -> None:
    about = list(itertools.islice(instructions(0, TEXT), 300))
    assert 30 < sum("word" in turn for turn in about) < 100
    plain = list(itertools.islice(instructions(0), 300))
    assert len(set(plain)) > 150 and not any("word1" in turn for turn in plain)
    assert all("{}" not in turn for turn in about + plain + follow_ups())


def test_progress_moves_while_the_model_writes(source: SourceModel) -> None:
    shown: list[str] = []
    progress = Progress(lambda _fraction, text: shown.append(text))
    conversation_windows(source.model, source.tokenizer, 1, 96, seed=0, text=None, progress=progress)
    assert "the model answers instructions, 5 of 96 tokens" in shown
    assert shown[-1] == "1 windows of conversations"
