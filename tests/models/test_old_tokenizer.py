# SPDX-License-Identifier: Apache-2.0
"""Folders with vocab.json and merges.txt, as the published OPT models have them, in place of tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models import hf_folder as folder_module
from nanoquant_edge.models.loading import load_model
from tests.compression.support import family_folder
from tests.tiny import TEXT


@pytest.fixture
def opt(tmp_path: Path) -> Path:
    folder = family_folder(tmp_path / "opt", "opt")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([TEXT], trainer)
    core.model.save(str(folder))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False}
    settings.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"), pad_token="<pad>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_tokenizer_json_is_made_with_the_leading_token(opt: Path) -> None:
    with load_model(opt) as source:
        made = Tokenizer.from_file(str(source.companions / "tokenizer.json"))
        ids = made.encode("The quick brown fox").ids
        assert ids == source.tokenizer("The quick brown fox").input_ids and ids[0] == 2
        assert (source.companions / "generation_config.json").is_file()
        assert source.companions != opt
    assert not source.companions.exists() and not (opt / "tokenizer.json").exists()


def _large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_LARGEST_PARTS", 10)


def _damaged(folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "vocab.json").write_text("{")


def _half(folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize(
    ("fault", "message"), [(_large, "more than"), (_damaged, "cannot be loaded"), (_half, "has no tokenizer.json")]
)
def test_what_is_refused(
    opt: Path, fault: Callable[[Path, pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(opt, monkeypatch)
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(opt):
        pass
    assert caught.value.code == "NQ-TOKENIZER"
