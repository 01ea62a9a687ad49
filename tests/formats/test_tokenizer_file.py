# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json before the native library sees it: harmless files pass as they are, the one that aborts does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer_file import read_tokenizer_file
from tests.tiny import write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> dict[str, Any]:
    write_tokenizer(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text())


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("escaped", [False, True])
def test_harmless_files(tmp_path: Path, tokenizer: dict[str, Any], value: str | None, escaped: bool) -> None:
    tokenizer["model"]["continuing_subword_prefix"] = value
    text = json.dumps(tokenizer)
    if escaped:
        text = text.replace("continuing_subword", "continuing\\u005Fsubword")
    (tmp_path / "tokenizer.json").write_text(text)
    assert read_tokenizer_file(tmp_path / "tokenizer.json") == text


@pytest.mark.parametrize(
    "spelling", ["continuing_subword_prefix", "continuing\\u005Fsubword_prefix", "\\u0063ontinuing_subword_prefix"]
)
@pytest.mark.parametrize("twice", [False, True])
def test_a_prefix_is_refused_however_it_is_spelled(
    tmp_path: Path, tokenizer: dict[str, Any], spelling: str, twice: bool
) -> None:
    prefix = f'"{spelling}": "."'
    text = json.dumps(tokenizer).replace('"continuing_subword_prefix": null', prefix)
    if twice:
        text = text.replace(prefix, f'{prefix}, "continuing_subword_prefix": null')
    assert prefix in text
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(NqEdgeError, match="has a continuing_subword_prefix") as caught:
        read_tokenizer_file(tmp_path / "tokenizer.json")
    assert caught.value.code == "NQ-TOKENIZER"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not valid UTF-8"),
        (b'{"continuing_subword_prefix": ', "is not a valid"),
        (b"[" * 99999 + b"\\u0041", "valid"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NqEdgeError, match=message):
        read_tokenizer_file(tmp_path / "x")
