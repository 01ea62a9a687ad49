# SPDX-License-Identifier: Apache-2.0
"""Tokens that several files name, with and without flags: one token here exactly where it is one in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from tests.tiny import write_tokenizer

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
TEXTS = [
    "Hi  </s>  you </s>\n\nfox", "x</s>x", "a </s> b", "a <s> b </s> c", "</s>", " </s>", "a fox and an emoji foxes",
    "<|tool|> x<|tool|>", "the lazy dog <|im_end|>\n <|im_start|>a", "The quick brown fox jumps over the lazy dog",
]  # fmt: skip


def same(folder: Path, *texts: str) -> None:
    """Ids and decoded texts are those of transformers, on hard texts."""
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*TEXTS, *texts]:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert ours.size == len(theirs)
    named = {name: str(value) for name, value in theirs.special_tokens_map.items()}
    assert {name: ours.special_tokens[name] for name in named} == named


def files(folder: Path, tokens: dict[str, dict[str, Any]] | None = None, **contents: Any) -> Path:
    """A folder of a byte-level tokenizer of 320 tokens; flags of tokenizer.json's tokens, and files beside it."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    core = json.loads((folder / "tokenizer.json").read_text())
    for token in core["added_tokens"]:
        token.update((tokens or {}).get(token["content"], {}))
    (folder / "tokenizer.json").write_text(json.dumps(core))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | contents.pop("tokenizer_config", {})
    for name, content in {"tokenizer_config": settings, **contents}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def token(text: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": text, **plain, **flags}


@pytest.mark.parametrize("content", ["</s>", "<|im_end|>"])
@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_tokenizer_json_hold(tmp_path: Path, flag: str, content: str) -> None:
    same(files(tmp_path / "t", {content: {flag: True}}), f"a {content} b", f"a{content}b  {content}")


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_the_configuration_beside_it_hold(tmp_path: Path, flag: str) -> None:
    decoder = {"2": token("</s>", **{flag: True})}
    same(files(tmp_path / "t", tokenizer_config={"added_tokens_decoder": decoder}))


def test_a_flag_changes_what_a_text_becomes(tmp_path: Path) -> None:
    plain = load_tokenizer(files(tmp_path / "plain")).encode("a </s> b")
    strips = load_tokenizer(files(tmp_path / "strips", {"</s>": {"rstrip": True}})).encode("a </s> b")
    assert 2 in plain and 2 in strips and plain != strips


BESIDE: dict[str, dict[str, Any]] = {
    "map, extra": {"special_tokens_map": {"additional_special_tokens": ["fox", "emoji"]}},
    "map, extra by its newer name": {"special_tokens_map": {"extra_special_tokens": ["fox", "emoji"]}},
    "map, with flags": {"special_tokens_map": {"pad_token": token("<|tool|>", lstrip=True)}},
    "map, another end": {"special_tokens_map": {"eos_token": "<|im_end|>"}},
    "map that is not read": {
        "special_tokens_map": {"additional_special_tokens": ["fox"]},
        "tokenizer_config": {"added_tokens_decoder": {"2": token("</s>")}},
    },
    "decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": {"320": token("fox", special=False), "321": token("<|tool|>", rstrip=True)}
        }
    },
    "added tokens": {"added_tokens": {"fox": 320, "<|tool|>": 321}},
    "added tokens, one of them special": {
        "added_tokens": {"fox": 320, "<|tool|>": 321},
        "tokenizer_config": {"extra_special_tokens": ["<|tool|>"]},
    },
    "extra": {"tokenizer_config": {"extra_special_tokens": ["fox", "<|tool|>"]}},
    "extra as an object": {"tokenizer_config": {"extra_special_tokens": {"image_token": "fox"}}},
    "both lists": {
        "tokenizer_config": {"extra_special_tokens": ["fox"], "additional_special_tokens": ["emoji"]},
    },
    "a model's own name": {"tokenizer_config": {"image_token": "<|tool|>"}},
    "list and map": {
        "tokenizer_config": {"extra_special_tokens": ["fox"]},
        "special_tokens_map": {"extra_special_tokens": ["emoji", "fox"]},
    },
}


@pytest.mark.parametrize("beside", BESIDE)
def test_tokens_of_other_files_are_tokens(tmp_path: Path, beside: str) -> None:
    folder = files(tmp_path / "t", **BESIDE[beside])
    same(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.completed == (beside not in ("map, another end", "map that is not read"))
    (tmp_path / "copy").mkdir()
    tokenizer.save_pretrained(tmp_path / "copy")
    (tmp_path / "copy/tokenizer_config.json").unlink()
    alone = load_tokenizer(tmp_path / "copy")  # a file that holds every token needs no other
    assert all(alone.encode(text) == tokenizer.encode(text) for text in TEXTS)
    assert not alone.completed


@given(
    flags=st.fixed_dictionaries({name: st.booleans() for name in FLAGS}),
    file=st.sampled_from(["tokenizer", "decoder", "map", "map, extra", "none"]),
    names=st.lists(st.sampled_from(["fox", "</s>", "<|im_end|>", "<|tool|>", "lazy"]), unique=True, max_size=3),
)
def test_any_flags_in_any_place(
    tmp_path_factory: pytest.TempPathFactory, flags: dict[str, bool], file: str, names: list[str]
) -> None:
    contents: dict[str, Any] = {"tokenizer_config": {"additional_special_tokens": names}}
    tokens = {"</s>": flags} if file == "tokenizer" else {}
    if file == "decoder":
        contents["tokenizer_config"]["added_tokens_decoder"] = {"2": token("</s>", **flags)}
    elif file == "map":
        contents["special_tokens_map"] = {"eos_token": token("</s>", **flags)}
    elif file == "map, extra":
        contents["special_tokens_map"] = {"additional_special_tokens": ["emoji", *names]}
    folder = files(tmp_path_factory.mktemp("t") / "t", tokens, **contents)
    same(folder, *(f"a {name} b{name}" for name in names))


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"added_tokens": {"fox": 400}}, "'fox' has the id 400 in the files beside the tokenizer, and 320 in the tok"),
        ({"added_tokens": {"</s>": 7}}, "'</s>' has the id 7"),
        ({"tokenizer_config": {"added_tokens_decoder": {"321": token("fox")}}}, "'fox' has the id 321"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": token("fox")}}}, "names tokens that are no tokens"),
        ({"tokenizer_config": {"added_tokens_decoder": {"320": 7}}}, "names tokens that are no tokens"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "names tokens that are no tokens"),
        ({"tokenizer_config": {"extra_special_tokens": [7]}}, "names tokens that are no tokens"),
        ({"tokenizer_config": {"bos_token": 7}}, "names tokens that are no tokens"),
        ({"tokenizer_config": {"bos_token": "\ud800"}}, "names tokens that are no tokens"),
        ({"added_tokens": {"fox": "many"}}, "names tokens that are no tokens"),
        ({"special_tokens_map": [1]}, "does not hold a JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(tmp_path: Path, beside: dict[str, Any], message: str) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        load_tokenizer(files(tmp_path / "t", **beside))
    assert caught.value.code == "NQ-TOKENIZER"


def test_links_of_the_hub_s_cache_are_followed(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    folder.parent.mkdir()
    files(folder)
    expected = load_tokenizer(folder).encode("The fox")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, blobs / name)
        (folder / name).symlink_to(f"../../blobs/{name}")
    assert load_tokenizer(folder).encode("The fox") == expected
