# SPDX-License-Identifier: Apache-2.0
"""Which windows a run takes: as many of each source as its weight says, and conversations where a model has chats."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.calibrate.sources import CalibrationText, OwnText
from nanoquant_edge.compression.calibrate.text import text_windows
from nanoquant_edge.compression.calibrate.windows import calibration_windows, chat_windows, fresh_windows
from nanoquant_edge.compression.run import Run
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from tests.compression.support import dense_folder
from tests.tiny import TEXT

LENGTH = 32
OTHER = " ".join(str(number) for number in range(4000))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceModel]:
    with load_model(dense_folder(tmp_path_factory.mktemp("dense") / "model")) as found:
        yield found


def run_of(**settings: object) -> Run:
    return Run(recipe=Recipe(windows=8, window_length=LENGTH, window_choice="distinct", **settings))


def starts_a_chat(source: SourceModel, windows: torch.Tensor) -> torch.Tensor:
    return windows[:, 0] == source.tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_one_text_without_conversations_gives_the_windows_that_it_always_gave(source: SourceModel) -> None:
    found = calibration_windows(source, CalibrationText((TEXT,)), run_of())
    assert torch.equal(found, text_windows(source.tokenizer, TEXT, windows=8, length=LENGTH, seed=0))


def test_weights_say_how_many_windows_each_text_gives(source: SourceModel) -> None:
    found = calibration_windows(source, CalibrationText((TEXT, OTHER), (1.0, 3.0)), run_of())
    numbers = [not any(letter.isalpha() for letter in source.tokenizer.decode(window)) for window in found]
    assert found.shape == (8, LENGTH) and sum(numbers) == 6


def test_a_share_of_the_windows_holds_conversations(source: SourceModel) -> None:
    text = CalibrationText((TEXT,))
    assert int(starts_a_chat(source, calibration_windows(source, text, run_of(chat_share=0.5))).sum()) == 4
    assert int(starts_a_chat(source, calibration_windows(source, text, run_of(chat_share=1.0))).sum()) == 8
    assert int(starts_a_chat(source, calibration_windows(source, None, run_of(chat_share=0.25))).sum()) == 2


def test_a_model_without_a_chat_format_has_no_conversations(source: SourceModel) -> None:
    plain: Any = SimpleNamespace(streamed=False, tokenizer=SimpleNamespace(chat_template=None))
    streamed: Any = SimpleNamespace(streamed=True, tokenizer=source.tokenizer)
    assert chat_windows(source, 0.5, 8) == 4
    assert chat_windows(plain, 0.5, 8) == 0
    assert chat_windows(streamed, 0.5, 8) == 0


def test_fresh_text_is_as_much_as_there_is(source: SourceModel) -> None:
    run = run_of(end_to_end_tokens=20 * LENGTH, end_to_end_chat_share=0.25)
    found = fresh_windows(source, CalibrationText((TEXT, OTHER)), run)
    assert found.shape == (20, LENGTH) and int(starts_a_chat(source, found).sum()) == 5
    little = fresh_windows(source, CalibrationText((TEXT[:400],)), run)
    assert 0 < len(little) < 20


def test_fresh_text_is_what_calibration_has_not_seen(source: SourceModel) -> None:
    text = CalibrationText((OTHER,))
    run = run_of(end_to_end_tokens=8 * LENGTH, end_to_end_chat_share=0.0)
    seen = {tuple(row) for row in calibration_windows(source, text, run).tolist()}
    assert seen.isdisjoint(map(tuple, fresh_windows(source, text, run).tolist()))


def test_a_text_is_tokenized_and_checked_once(source: SourceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(type(source.tokenizers), "check", lambda _self, text, _name: checked.append(text))
    text = CalibrationText((TEXT, OTHER))
    run = run_of(end_to_end_tokens=8 * LENGTH)
    calibration_windows(source, text, run)
    fresh_windows(source, text, run)
    assert checked == [TEXT, OTHER]


def test_own_text_is_mixed_in_and_ends_with_its_amount(source: SourceModel) -> None:
    run = run_of(end_to_end_tokens=20 * LENGTH, end_to_end_chat_share=0.0)
    text = CalibrationText((OTHER, OwnText(10 * LENGTH)))
    found = calibration_windows(source, text, run)
    assert found.shape == (8, LENGTH) and int((found[:, 0] == source.start_token).sum()) == 4
    fresh = fresh_windows(source, text, run)
    # What is missing of the model's own text is taken from the other.
    assert fresh.shape == (20, LENGTH) and int((fresh[:, 0] == source.start_token).sum()) == 6
    own = {tuple(row) for row in found.tolist() if row[0] == source.start_token}
    assert own.isdisjoint(map(tuple, fresh.tolist()))
    with pytest.raises(NqEdgeError, match="more than the 64 tokens") as caught:
        calibration_windows(source, CalibrationText((OwnText(2 * LENGTH),)), run)
    assert caught.value.code == "NQ-CALIBRATION"


def test_too_short_a_text_is_refused(source: SourceModel) -> None:
    with pytest.raises(NqEdgeError) as caught:
        calibration_windows(source, CalibrationText(("short",)), run_of())
    assert caught.value.code == "NQ-CALIBRATION"


def test_the_digest_changes_with_texts_and_weights() -> None:
    texts = [
        CalibrationText(("a", "b")),
        CalibrationText(("b", "a")),
        CalibrationText(("ab",)),
        CalibrationText(("a", "b"), (1.0, 2.0)),
    ]
    assert len({text.digest() for text in texts}) == 4
