# SPDX-License-Identifier: Apache-2.0
"""Rows of the quality table: what is measured, what is measured once, and what a limited run leaves for the next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import quality, quality_measure
from benchmarks.quality import Size, known_dense
from benchmarks.quality_measure import Measure, corpus_windows, source_code, window_figures
from nanoquant_edge.validation.perplexity import perplexity
from tests.compression.support import dense_folder, dense_llama
from tests.tiny import TEXT


class Words:
    """A tokenizer of single letters that puts BOS in front, as Gemma's does."""

    bos_token_id = 2

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [2, *(ord(letter) % 300 for letter in text)]}


def test_windows_of_gemma_begin_with_bos_and_those_of_others_do_not() -> None:
    ids = Words()("abcdefghij")["input_ids"]
    plain = corpus_windows(Words(), {"model_type": "llama"}, "abcdefghij", 5, 4)
    assert plain.tolist() == [ids[:4], ids[4:8]]
    gemma = corpus_windows(Words(), {"model_type": "gemma3_text"}, "abcdefghij", 2, 4)
    assert gemma.tolist() == [[2, *ids[1:4]], [2, *ids[4:7]]]
    assert len(corpus_windows(Words(), {"model_type": "gemma3_text"}, "abcdefghij", 9, 4)) == 3


@pytest.mark.parametrize("tokens", [8, 24, 1000])
def test_figures_are_those_of_their_definitions(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quality_measure._TOKENS, "cpu", tokens)
    monkeypatch.setitem(quality_measure._LOGIT_BYTES, "cpu", 4 * 320 * 7)
    dense, other = dense_llama(), dense_llama(seed=1)
    windows = torch.randint(3, 320, (5, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = dense.base_model(input_ids=windows[:3]).last_hidden_state
        wanted = dense(windows[:3]).logits.double().log_softmax(-1)
        found = other(windows[:3]).logits.double().log_softmax(-1)
    ppl, kl, top1, right = window_figures(other, windows, dense, states)
    assert ppl == pytest.approx(perplexity(other, windows.flatten(), window=8), rel=1e-5)
    assert kl == pytest.approx(float((wanted.exp() * (wanted - found)).sum(-1).mean()), rel=1e-4)
    with torch.inference_mode():
        chosen = other(windows).logits[:, :-1].argmax(-1)
    assert right == pytest.approx(float((chosen == windows[:, 1:]).double().mean()))
    assert top1 == pytest.approx(float((wanted.argmax(-1) == found.argmax(-1)).double().mean()))
    assert window_figures(other, windows) == (pytest.approx(ppl), 0.0, 0.0, right)
    assert window_figures(dense, windows, dense, states)[1:3] == (pytest.approx(0.0, abs=1e-6), 1.0)


def test_dense_figures_come_from_a_row_of_the_same_model_and_size() -> None:
    row = {"model": "m", "n_windows": 32, "zero_shot_items": 300, "ppl": 9.0, "ppl_dense": 5.0, "code_dense": 0.5}
    rows = [row, {**row, "ppl_dense": 6.0}, {**row, "recipe": "rtn", "ppl_dense": 7.0}, {**row, "answers": 20}]
    del rows[2]["ppl_dense"], rows[2]["code_dense"], rows[3]["code_dense"]
    assert known_dense(rows, "m", Size(32, 300)) == {"ppl_dense": 6.0, "code_dense": 0.5}
    for model, size in (("m", Size(16, 300)), ("n", Size(32, 300)), ("m", Size(32, 0)), ("m", Size(32, 300, 20))):
        assert known_dense(rows, model, size) is None


def test_source_code_is_this_pythons(tmp_path: Path) -> None:
    assert "class ArgumentParser" in source_code()
    (tmp_path / "csv.py").write_text("import re\n")
    assert source_code(tmp_path) == "import re\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("quality") / "tiny")


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quality_measure.corpus_windows, "__defaults__", (64,))
    for name in ("wikitext2-train-part.raw", *quality_measure.CORPORA.values()):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    return tmp_path


def table(model: Path, texts: Path, *options: str) -> list[dict[str, Any]]:
    """Rows of the figure file after one run of the command."""
    short = ["windows=2", "window_length=32", "admm_steps=4", "fp_epochs=0", "ste_epochs=0", "kd_epochs=0"]
    changes = [part for change in short for part in ("--set", change)]
    places = ["--texts", str(texts), "--windows", "3", "--device", "cpu", "--append", "--figures", str(texts)]
    result = CliRunner().invoke(quality.main, [str(model), *places, *changes, *options])
    assert result.exit_code == 0, result.output
    file = texts / "quality.json"
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def test_rows_are_made_once_and_only_within_the_limit(
    model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert table(model, texts, "--recipe", "quick", "--time-limit", "-1") == []
    rows = table(model, texts, "--recipe", "quick", "--seed", "0", "--seed", "1")
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(0 <= row["code"] < 0.5 for row in rows)
    # The dense model's figures are in those rows and are not measured again.
    monkeypatch.setattr(Measure, "dense", None)
    rows = table(model, texts, "--recipe", "quick", "--seed", "1", "--seed", "2", "--rtn", "8")
    assert [(row["recipe"], row["seed"]) for row in rows] == [("quick", 0), ("quick", 1), ("quick", 2), ("rtn", 0)]
    assert len({row["ppl_dense"] for row in rows}) == len({row["dense_mb"] for row in rows}) == 1
    eight = rows[-1]
    assert eight["ppl"] == pytest.approx(eight["ppl_dense"], rel=0.05)
    assert eight["kl"] < 0.01
    assert eight["file_mb"] < eight["dense_mb"]
    assert all(math.isfinite(row["measure_seconds"]) and row["kl"] > eight["kl"] for row in rows[:3])


def test_a_model_with_a_chat_format_is_asked_and_tables_are_rows_of_their_own(model: Path, texts: Path) -> None:
    rows = table(model, texts, "--recipe", "quick", "--answers", "2")
    rows = table(model, texts, "--recipe", "quick", "--answers", "2", "--embedding", "int8")
    plain, eight = rows
    assert eight["embedding"] == "int8" and eight["file_mb"] < plain["file_mb"]
    assert plain["answers"] == 2 and {"ends", "repeats", "right", "answer_loss", "answer_loss_dense"} <= set(plain)


def test_text_in_place_of_the_usual_one_is_told(model: Path, texts: Path) -> None:
    other = texts / "other.txt"
    other.write_text(TEXT, encoding="utf-8")
    (row,) = table(model, texts, "--recipe", "quick", "--calibration", str(other), "--calibration", f"{texts}=0.5")
    assert row["schedule"].endswith(f" kd_epochs=0 text=other.txt text={texts.name}=0.5")


def test_default_compares_with_official_and_presets_are_as_they_come() -> None:
    asked = list(quality._wanted("m", ("default", "balanced", "official"), "", (), (1.0,), (0,), 32))
    assert [recipe.chat_share for _, recipe in asked] == [0.0, 0.5, 0.0]
    assert [recipe.rank_fill for _, recipe in asked] == [False, True, False]


def test_a_model_must_be_named() -> None:
    assert CliRunner().invoke(quality.main, []).exit_code == 2
