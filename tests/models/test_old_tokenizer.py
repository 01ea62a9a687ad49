# SPDX-License-Identifier: Apache-2.0
"""Folders with vocab.json and merges.txt, as the published OPT models have them, in place of tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.model_tokenizer import open_tokenizer
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


def _damaged(folder: Path) -> None:
    (folder / "vocab.json").write_text("{")


def _half(folder: Path) -> None:
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize(("fault", "message"), [(_damaged, "cannot be loaded"), (_half, "has no tokenizer.json")])
def test_what_is_refused(opt: Path, fault: Callable[[Path], None], message: str) -> None:
    fault(opt)
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(opt):
        pass
    assert caught.value.code == "NQ-TOKENIZER"


def test_a_vocabulary_beyond_all_reason_is_refused(opt: Path) -> None:
    assert open_tokenizer(opt).ours.size == 320
    with pytest.raises(NqEdgeError, match="has more than 0 MiB") as caught:
        open_tokenizer(opt, largest=10)
    assert caught.value.code == "NQ-TOKENIZER"
