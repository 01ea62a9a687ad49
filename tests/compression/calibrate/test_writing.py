# SPDX-License-Identifier: Apache-2.0
"""Rows of scripts: what is given stands in them, answers are the model's, and neither neighbours nor memory matter."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.calibrate import writing as module
from nanoquant_edge.compression.calibrate.writing import Script, Turn, Writing, write
from tests.compression.support import dense_llama


@pytest.fixture(scope="module")
def model() -> Any:
    made = dense_llama()
    with torch.no_grad():
        made.model.norm.weight.mul_(3)  # sharper than uniform
    return made


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def one(given: list[int], longest: int, answers: list[list[int]]) -> Script:
    answers.append((yield Turn(given, longest)))


def test_greedy_rows_are_the_models_own_however_many_go_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1, 7, 9], [1], [5] * 20, [3, 4], [8, 8, 8]]
    wanted = [prompt + greedy(model, prompt, 12) for prompt in prompts]
    for at_once in (32, 2, 1):
        monkeypatch.setattr(module, "affordable_rows", lambda *_, most=at_once: most)
        answers: list[list[int]] = []
        rows = write(model, [one(prompt, 12, answers) for prompt in prompts], Writing(length=40, temperature=0))
        assert rows == wanted
        assert sorted(answers) == sorted(row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True))


def test_turns_go_on_or_begin_anew(model: Any) -> None:
    first = greedy(model, [1, 5], 3)
    second = greedy(model, [1, 5, *first, 9, 9], 4)

    def talk() -> Script:
        assert (yield Turn([1, 5], 3)) == first
        assert (yield Turn([9, 9], 4, begins=False)) == second
        yield Turn([6], 0, begins=False)
        assert (yield Turn([1, 5], 3)) == first
        yield Turn([2], 5)

    (row,) = write(model, [talk()], Writing(length=60, temperature=0))
    assert row == [1, 5, *first, 9, 9, *second, 6, 1, 5, *first, 2, *greedy(model, [2], 5)]


def test_an_answer_ends_with_an_end_token(model: Any) -> None:
    free = greedy(model, [1, 5], 20)
    end = free[6]
    answers: list[list[int]] = []
    write(model, [one([1, 5], 20, answers)], Writing(length=60, temperature=0, ends=[end]))
    assert answers == [free[: free.index(end) + 1]]


def endless(given: list[int], longest: int = 9) -> Script:
    while True:
        yield Turn(given, longest)


def test_rows_are_full_and_the_seed_and_the_number_decide(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(count: int, **settings: Any) -> list[list[int]]:
        return write(model, [endless([1, 2, 3]) for _ in range(count)], Writing(length=33, **settings))

    found = rows(5)
    assert all(len(row) == 33 and row[:3] == row[12:15] == row[24:27] == [1, 2, 3] for row in found)
    assert len({tuple(row) for row in found}) == 5
    assert found == rows(5) and found != rows(5, seed=1)
    assert rows(2, first=3) == found[3:]
    monkeypatch.setattr(module, "affordable_rows", lambda *_: 2)
    assert rows(5) == found


def test_what_does_not_fit_has_no_answer() -> None:
    small = dense_llama(max_position_embeddings=16)
    answers: list[list[int]] = []
    rows = write(small, [one([4] * 30, 5, answers), one([4] * 14, 5, answers)], Writing(length=40, temperature=0))
    assert rows[0] == [4] * 30 and rows[1][:14] == [4] * 14
    assert sorted(map(len, answers)) == [0, 2]
    assert write(small, [endless([4] * 30)], Writing(length=70)) == [[4] * 70]


def test_a_script_that_fails_leaves_the_model_as_it_was(model: Any) -> None:
    def broken() -> Script:
        yield Turn([1], 3)
        yield Turn([], 3)

    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="begins with a token"):
        write(model, [broken()], Writing(length=30))
    assert model.config._attn_implementation == before


def test_nothing_is_written_where_nothing_is_asked(model: Any) -> None:
    assert write(model, [], Writing(length=5)) == []
    told: list[int] = []
    write(model, [endless([1]) for _ in range(3)], Writing(length=8, told=told.append))
    assert told == sorted(told) and 20 < told[-1] <= 24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_writes_the_same_rows_and_gives_its_memory_back(model: Any) -> None:
    writing = Writing(length=150, temperature=0, dtype=torch.float32)  # long enough for a second length of cache
    wanted = write(model, [endless([1, 2, 3], 60) for _ in range(3)], writing)
    here = copy.deepcopy(model).to("cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a graph that could not be captured is one
        found = write(here, [endless([1, 2, 3], 60) for _ in range(3)], writing)
    assert found == wanted
    assert torch.cuda.memory_allocated() - before < 1 << 20
    drawn = Writing(length=40, seed=3)
    assert write(here, [endless([1])], drawn) == write(here, [endless([1])], drawn)
