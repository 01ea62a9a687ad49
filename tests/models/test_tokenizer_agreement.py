# SPDX-License-Identifier: Apache-2.0
"""One tokenizer for calibration, validation and prompts, seen to be the one that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nanoquant_edge.compression import compress
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.model_tokenizer import ModelTokenizer, open_tokenizer
from nanoquant_edge.models.tokenizer_agreement import check_tokenizers, hard_texts
from tests.compression.support import dense_folder, short_recipe
from tests.tiny import TEXT

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
WORDS = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{L}+|\s+|[^\s\p{L}]"), "isolated"), BYTES])


def edited(folder: Path, change: Callable[[Tokenizer], object], **settings: Any) -> Path:
    """The folder with another tokenizer.json and tokenizer_config.json."""
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    change(core)
    core.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("split", [DIGITS, WORDS], ids=["digits", "words"])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_calibration_and_prompts_are_cut_alike_whatever_class_is_named(
    tmp_path: Path, kind: str, split: pre_tokenizers.PreTokenizer
) -> None:
    def change(core: Tokenizer) -> None:
        core.pre_tokenizer = split

    folder = edited(dense_folder(tmp_path / "m"), change, tokenizer_class=kind)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with load_model(folder) as source:
        prompts = load_tokenizer(source.companions)
        for text in [*hard_texts(prompts), TEXT]:
            assert source.tokenizer(text, verbose=False)["input_ids"] == prompts.encode(text)
            assert prompts.encode(text) == expected.encode(text).ids


def test_the_methods_of_transformers_tokenizers_are_there(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "m")) as source:
        tokenizer = source.tokenizer
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 320)
        chat = [{"role": "user", "content": "Hi"}]
        shown = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert shown == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.batch_decode([[1, 69, 2]], skip_special_tokens=True) == ["a"]
        assert source.tokenizer is tokenizer


def test_tokens_of_other_files_are_in_the_companions_tokenizer_json(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m", vocab_size=328)
    (folder / "added_tokens.json").write_text(json.dumps({"<|tool|>": 320 + 8}))
    with pytest.raises(NqEdgeError, match=r"'<\|tool\|>' has the id 328"), load_model(folder):
        pass
    (folder / "added_tokens.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|tool|>"]}))
    with load_model(folder) as source:
        assert source.companions != folder
        alone = Tokenizer.from_file(str(source.companions / "tokenizer.json"))
        assert alone.encode("a<|tool|>").tokens == ["a", "<|tool|>"]
        assert (source.companions / "generation_config.json").is_file()
        assert source.tokenizer("a<|tool|>").input_ids == alone.encode("a<|tool|>").ids
    with load_model(dense_folder(tmp_path / "plain")) as source:
        assert source.companions == tmp_path / "plain"


def _lower_case(core: Tokenizer) -> None:
    core.normalizer = normalizers.Lowercase()


def _start_token(core: Tokenizer) -> None:
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def _other_split(core: Tokenizer) -> None:
    core.pre_tokenizer = WORDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lower_case, r"behind '' of a text come the tokens \[.*'T.*\] here and \[.*'t.*\] in transformers"),
        (_start_token, r"behind '' .* in transformers"),
        (_other_split, "is read in two ways"),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, change: Callable[[Tokenizer], object], message: str) -> None:
    ours = open_tokenizer(dense_folder(tmp_path / "m")).ours
    core = Tokenizer.from_file(str(tmp_path / "m/tokenizer.json"))
    change(core)
    theirs = PreTrainedTokenizerFast(tokenizer_object=core)
    check_tokenizers(ours, PreTrainedTokenizerFast(tokenizer_object=ours.core), hard_texts(ours), "m")
    with pytest.raises(NqEdgeError, match=message) as caught:
        check_tokenizers(ours, theirs, hard_texts(ours), "m")
    assert caught.value.code == "NQ-TOKENIZER" and "the tokenizer of m is read in two ways" in caught.value.message


def test_a_difference_in_the_calibration_text_stops_the_compression(tmp_path: Path) -> None:
    """A tokenizer that agrees on every sample and not on the text, as transformers' could by a fault of its own."""
    folder = dense_folder(tmp_path / "m")
    found = open_tokenizer(folder)

    class Odd:
        def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
            ids = found.ours.encode(text)
            return {"input_ids": ids if "Zyzzyva" not in text else ids[:-1]}

    odd = ModelTokenizer(found.ours, Odd())
    odd.check(TEXT, "m")
    with pytest.raises(NqEdgeError, match="the tokenizer of m is read in two ways"):
        odd.check(TEXT + "Zyzzyva", "m")


def test_compress_checks_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, str]] = []
    monkeypatch.setattr(ModelTokenizer, "check", lambda _self, text, name: checked.append((text, name)))
    folder = dense_folder(tmp_path / "m")
    (tmp_path / "text").write_text(TEXT)
    compress(folder, tmp_path / "c", bpw=2.0, recipe=short_recipe(), calibration=tmp_path / "text", device="cpu")
    assert [name for _, name in checked] == ["m"] and checked[0][0][:20] == TEXT[:20]
