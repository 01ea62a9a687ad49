# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Core

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from tests.tiny import TEXT

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "wikipedia-passages.txt"
SAMPLES = [
    "",
    " ",
    "  two  spaces ",
    "\n\n\ttabs\r\n",
    TEXT,
    "<s>special</s> in <|im_start|>text<|im_end|>",
    "東京 🙂🚀 e\u0301 \u200b \ufeff",
    "<0x41> \u2581 half",
]


def _corpus() -> list[str]:
    lines = CORPUS.read_text(encoding="utf-8")[:200_000].splitlines() if CORPUS.is_file() else TEXT.splitlines()
    return [line for line in lines if line]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_ids_and_texts_equal_those_of_transformers(kind: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(f"{kind}_folder")
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in SAMPLES + _corpus():
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.special_tokens == {k: v for k, v in theirs.special_tokens_map.items() if k in ours.special_tokens}
    assert ours.token_id("eos_token") == theirs.eos_token_id


def test_real_tokenizers_give_the_ids_of_transformers() -> None:
    """NQ_EDGE_TOKENIZERS names Hugging Face folders, divided as in PATH."""
    from transformers import AutoTokenizer

    folders = os.environ.get("NQ_EDGE_TOKENIZERS")
    if not folders:
        pytest.skip("NQ_EDGE_TOKENIZERS is not set")
    for folder in folders.split(os.pathsep):
        theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
        for text in SAMPLES + _corpus():
            ids = theirs(text).input_ids
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"pad_token": "[PAD]"},
        {"extra_special_tokens": ["fox", "<new>"]},
        {"additional_special_tokens": ["lazy"]},
        {
            "bos_token": {
                "__type": "AddedToken",
                "content": "<s>",
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            }
        },
        {"split_special_tokens": True},
    ],
)
def test_settings_beside_the_tokenizer_are_read_as_transformers_reads_them(
    change: dict, byte_level_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "tokenizer"
    shutil.copytree(byte_level_folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*SAMPLES, "[PAD] a fox <new> lazy"]:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_stored_truncation_and_padding_do_not_touch_prompts(byte_level_folder: Path, tmp_path: Path) -> None:
    core = Core.from_file(str(byte_level_folder / "tokenizer.json"))
    expected = core.encode(TEXT).ids
    core.enable_truncation(4)
    core.enable_padding(length=9)
    core.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(TEXT) == expected


def test_a_lone_surrogate_is_replaced(byte_level_folder: Path) -> None:
    tokenizer = load_tokenizer(byte_level_folder)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[1]", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "X"}}']
)
def test_a_missing_or_invalid_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(NqEdgeError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "NQ-TOKENIZER"


def test_an_invalid_configuration_is_refused(byte_level_folder: Path, tmp_path: Path) -> None:
    shutil.copy(byte_level_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(NqEdgeError, match="does not hold a JSON object") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "NQ-TOKENIZER"


def test_a_file_that_leads_elsewhere_is_refused(byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(byte_level_folder / "tokenizer.json")
    with pytest.raises(NqEdgeError, match="outside") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "NQ-PATH"


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
START = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
NO_TOKEN = [{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}},
        {"model": {"type": "Unigram", "vocab": [], "unk_id": None}},
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "none", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SLOW, BYTES]}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}},
        {"post_processor": {**START, "single": NO_TOKEN}},
        {"post_processor": {**START, "single": [{"Sequence": {"id": "B", "type_id": 0}}]}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_file_that_makes_the_library_fail_is_one_error(change: dict, byte_level_folder: Path, tmp_path: Path) -> None:
    honest = json.loads((byte_level_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**honest, **change}))
    with pytest.raises(NqEdgeError) as caught:
        load_tokenizer(tmp_path).encode("Hello " + "a" * 40 + "!")
    assert caught.value.code == "NQ-TOKENIZER"


def test_a_file_that_makes_decoding_fail_is_one_error(byte_level_folder: Path, tmp_path: Path) -> None:
    honest = json.loads((byte_level_folder / "tokenizer.json").read_text())
    decoder = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**honest, "decoder": decoder}))
    tokenizer = load_tokenizer(tmp_path)
    word = "a" * 40 + "!"
    tokenizer.core.add_tokens([word])
    with pytest.raises(NqEdgeError) as caught:
        tokenizer.decode([tokenizer.core.token_to_id(word)])
    assert caught.value.code == "NQ-TOKENIZER"
