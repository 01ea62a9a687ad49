# SPDX-License-Identifier: Apache-2.0
"""Figures of answers: repeated n-grams by hand, a tiny model against itself, and prompts that calibration never saw."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

import benchmarks.answers as module
from benchmarks.answers import Answers, repeated_share
from nanoquant_edge.compression.calibrate.instructions import instructions
from nanoquant_edge.models.loading import load_model
from tests.compression.support import dense_folder


def test_repeated_ngrams_by_hand() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0
    assert repeated_share([1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 3)
    assert repeated_share([1, 2]) == 0
    assert repeated_share([1, 2, 1, 2, 1], 2) == 0.5


def test_a_model_agrees_with_its_own_answers(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "model")) as source:
        answers = Answers(source.tokenizer, 4)
        assert len(answers.prompts) == 4
        dense = answers.dense(source.model)
        assert answers.compressed(source.model, source.model) == dense
        assert 0 < dense["answer_loss"] < math.log(source.decoder.vocab_size) + 1
        for figure in ("ends", "repeats", "right"):
            assert 0 <= dense[figure] <= 1


def test_no_prompt_is_calibrated_on() -> None:
    texts = json.loads(Path(module.__file__).with_suffix(".json").read_text(encoding="utf-8"))
    asked = {form.format(subject) for form in texts["forms"] for subject in texts["subjects"]}
    asked |= {question for question, _ in texts["questions"]}
    assert len(asked) == 230
    assert asked.isdisjoint(itertools.islice(instructions(0), 20000))
