# SPDX-License-Identifier: Apache-2.0
"""Zero-shot scores against likelihoods worked out pair by pair, and the items of each set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import zero_shot
from benchmarks.figures import append_rows, merge_rows
from tests.compression.support import dense_llama

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy.jsonl": [{"query": "Q", "choices": ["a", "bc", "d"], "gold": 1}],
    "hellaswag_val_1000.jsonl": [{"activity_label": "L", "ctx": "c", "endings": ["x", "yy"], "label": "1"}],
    "piqa_valid.jsonl": [{"goal": "g", "sol1": "s", "sol2": "t"}],
    "winogrande.jsonl": [{"context_options": ["p", "qq"], "continuation": "r", "gold": 0}],
    "lambada_openai.jsonl": [{"context": "long", "continuation": "word"}],
}


class Letters:
    """A tokenizer for which every letter is an id."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % 300 for letter in text] for text in texts]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "piqa_valid-labels.lst").write_text("1\n")
    return tmp_path


@pytest.mark.parametrize("tokens", [8192, 24])
def test_scores_are_sums_of_log_likelihoods(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zero_shot._BATCH_TOKENS, "cpu", tokens)
    monkeypatch.setitem(zero_shot._LOGIT_BYTES, "cpu", 5 * 4 * 320)
    model = dense_llama()
    pairs = [("abc", " de"), ("a", " f"), ("hello there", " you and me"), ("xy", "z")]
    found = zero_shot._scores(model, zero_shot._encoded(Letters(), pairs))
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        ids = torch.tensor(Letters()([context + continuation])["input_ids"])
        with torch.no_grad():
            chances = model(ids).logits[0].double().log_softmax(-1)
        places = range(len(context), len(context) + len(continuation))
        assert score == pytest.approx(sum(float(chances[i - 1, ids[0, i]]) for i in places), rel=1e-4)
        assert greedy == all(int(chances[i - 1].argmax()) == int(ids[0, i]) for i in places)


def test_every_set_is_read(folder: Path) -> None:
    found = {name: read(folder)[0] for name, read in zero_shot.SETS.items()}
    assert found["arc_easy"] == ([("Q\nAnswer:", " a"), ("Q\nAnswer:", " bc"), ("Q\nAnswer:", " d")], 1)
    assert found["hellaswag"] == ([("L: c", " x"), ("L: c", " yy")], 1)
    assert found["piqa"] == ([("Question: g\nAnswer:", " s"), ("Question: g\nAnswer:", " t")], 1)
    assert found["winogrande"] == ([("p", " r"), ("qq", " r")], 0)
    assert found["lambada"] == ([("long", " word")], 0)


def test_accuracy_counts_right_choices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [(0.0, False), (1.0, False), (0.5, False), (1.0, True), (0.0, True), (0.0, False), (1.0, False)]
    scores += [(2.0, False), (3.0, False), (-5.0, True)]
    monkeypatch.setattr(zero_shot, "_scores", lambda _model, rows: [scores.pop(0) for _ in rows])
    found = zero_shot.Tasks(Letters(), folder, 10).accuracies(None)
    assert found == {"arc_easy": 1.0, "hellaswag": 0.0, "piqa": 1.0, "winogrande": 0.0, "lambada": 1.0}
    assert zero_shot.Tasks(Letters(), folder, 0).accuracies(None) == {}
    assert zero_shot.Tasks(Letters(), folder / "nowhere", 10).accuracies(None) == {}


def test_long_rows_keep_their_ends() -> None:
    rows = zero_shot._encoded(Letters(), [("a" * 2000, "bc"), ("", "word"), ("a", "b" * 2000)])
    assert [(len(ids), start) for ids, start in rows] == [(1024, 1022), (4, 1), (1024, 1)]


def test_rows_are_taken_over_once(tmp_path: Path) -> None:
    append_rows("t", [{"a": 1}], folder=tmp_path / "here")
    other = append_rows("t", [{"a": 2}], folder=tmp_path / "there")
    assert [merge_rows("t", other, tmp_path / "here") for _ in range(2)] == [1, 0]
    rows = json.loads((tmp_path / "here" / "t.json").read_text())["rows"]
    assert [row["a"] for row in rows] == [1, 2]
