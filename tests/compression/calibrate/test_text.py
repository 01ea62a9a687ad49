# SPDX-License-Identifier: Apache-2.0
"""Calibration windows: distinct, from the text as perplexity reads it, or written by the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanoquant_edge.compression.calibrate.text import cut_windows, read_text, text_windows
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.validation import text as validation_text

#: A heading, a blank row and two paragraphs as the raw corpus has them, and the text that models are scored on.
ROWS = " \n = Valkyria = \n \n The game began .\n\n It ended .\n"
JOINED = "\n\n = Valkyria = \n\n\n\n\n The game began .\n\n\n\n\n It ended .\n"


class Words:
    """A tokenizer for which every number in the text is an id."""

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def numbers(count: int) -> str:
    return " ".join(map(str, range(count)))


def test_calibration_and_validation_read_a_text_alike(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for content in (ROWS, "no end", "", "a\r\nb\r\n", "\n\n\n", "ünïcode\n\n日本\n"):
        path.write_bytes(content.encode())
        assert read_text(path) == validation_text.read_text(path)
    path.write_text(ROWS)
    assert read_text(path) == JOINED


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), (b"\xff\xfe\x00", "is not UTF-8"), ("folder", "cannot read")]
)
def test_texts_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "t.txt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(NqEdgeError, match=message) as caught:
        read_text(path)
    assert caught.value.code == "NQ-CALIBRATION"


def test_a_huge_text_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(NqEdgeError, match="at most") as caught:
        read_text(tmp_path / "big")
    assert caught.value.code == "NQ-CALIBRATION"


def test_windows_lie_side_by_side_where_the_text_is_long_enough() -> None:
    found = text_windows(Words(), numbers(103), windows=10, length=10, seed=0)
    assert found.shape == (10, 10)
    assert sorted(found[:, 0].tolist()) == list(range(0, 100, 10))
    assert all(row.tolist() == list(range(row[0], row[0] + 10)) for row in found)
    some = text_windows(Words(), numbers(1000), windows=5, length=10, seed=0)
    assert len(set(some[:, 0].tolist())) == 5
    assert all(start % 10 == 0 for start in some[:, 0].tolist())


def test_a_short_text_gives_overlapping_but_distinct_windows() -> None:
    found = text_windows(Words(), numbers(30), windows=8, length=10, seed=0)
    assert len(set(found[:, 0].tolist())) == 8
    everything = text_windows(Words(), numbers(17), windows=8, length=10, seed=0)
    assert sorted(everything[:, 0].tolist()) == list(range(8))


def test_the_seed_chooses_windows() -> None:
    first, again, other = (text_windows(Words(), numbers(1000), windows=5, length=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_spread_windows_are_those_of_the_official_run() -> None:
    # 114 whole windows, of which 32 at linspace(0, 113, 32) truncated (docs/METHOD.md, section 3.1); here 12 and 5.
    found = text_windows(Words(), numbers(12 * 4 + 3), windows=5, length=4, seed=7, choice="spread")
    assert found[:, 0].tolist() == [0, 2 * 4, 5 * 4, 8 * 4, 11 * 4]
    with pytest.raises(NqEdgeError, match="need at least 24"):
        text_windows(Words(), numbers(23), windows=6, length=4, seed=0, choice="spread")


def test_random_windows_repeat_as_the_official_loader_s_do() -> None:
    found = text_windows(Words(), numbers(5000), windows=128, length=8, seed=0, choice="random")
    distinct = {tuple(row) for row in found.tolist()}
    assert 70 <= len(distinct) <= 92  # 128 drawn with replacement from 128: 81 on average
    assert all(row == list(range(row[0], row[0] + 8)) for row in found.tolist())
    assert torch.equal(found, text_windows(Words(), numbers(5000), windows=128, length=8, seed=0, choice="random"))
    whole = text_windows(Words(), numbers(5000), windows=128, length=8, seed=0)
    assert len({tuple(row) for row in whole.tolist()}) == 128


@pytest.mark.parametrize(("tokens", "windows"), [(0, 1), (9, 1), (16, 8)])
def test_too_short_a_text_is_refused(tokens: int, windows: int) -> None:
    with pytest.raises(NqEdgeError, match=f"has {tokens} tokens; {windows} windows of 10 need at least") as caught:
        text_windows(Words(), numbers(tokens), windows=windows, length=10, seed=0)
    assert caught.value.code == "NQ-CALIBRATION"
    assert "--calibration" in caught.value.hint


class StartingWords(Words):
    """A tokenizer that puts 900 in front of a text."""

    bos_token_id = 900

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [900, *super().__call__(text, verbose)["input_ids"]]}


@pytest.mark.parametrize("choice", ["distinct", "spread", "random"])
def test_every_window_begins_with_the_start_token_that_the_tokenizer_puts_in_front(choice: str) -> None:
    found = text_windows(StartingWords(), numbers(63), windows=5, length=8, seed=0, choice=choice)
    assert found.shape == (5, 8)
    assert bool((found[:, 0] == 900).all())
    without = text_windows(Words(), numbers(63), windows=5, length=7, seed=0, choice=choice)
    assert torch.equal(found[:, 1:], without)


def test_windows_that_were_taken_before_come_last() -> None:
    body, none = torch.arange(100), torch.arange(0)
    first = cut_windows(body, none, windows=4, length=10, seed=3)
    rest = cut_windows(body, none, windows=10, length=10, seed=3, after=4)
    assert torch.equal(rest[6:], first)
    assert len({int(row[0]) for row in rest}) == 10
