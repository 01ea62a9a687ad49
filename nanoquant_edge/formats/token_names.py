# SPDX-License-Identifier: Apache-2.0
"""Tokens that the files beside tokenizer.json name: which text is the start token, and which strings are one token.

Four places have held them over the years: tokenizer_config.json by name ("bos_token"), as a list
(`extra_special_tokens`, `additional_special_tokens`) and by id (`added_tokens_decoder`), special_tokens_map.json, and
added_tokens.json. The rules for which of them counts are those of transformers 5 for a folder with a tokenizer.json, so
that a string is one token here exactly where it is one there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ..errors import NqEdgeError
from ..system.files import path_inside, read_json

__all__ = ["CONFIG_FILE", "SPECIAL_TOKEN_NAMES", "TokenNames", "read_token_names"]

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class TokenNames:
    """What is named beside tokenizer.json.

    Attributes:
        config: tokenizer_config.json, as read; {} when there is none.
        named: name such as "bos_token" -> token, by the usual names first.
        extra: further special tokens.
        stated: id -> token, where a file states ids.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, AddedToken] = field(default_factory=dict)
    extra: tuple[AddedToken, ...] = ()
    stated: Mapping[int, AddedToken] = field(default_factory=dict)

    def add_to(self, core: tokenizers.Tokenizer) -> None:
        """Make each of the tokens one token of a tokenizer; one that it has already keeps its flags, unless its id is
        stated here with others.

        Raises:
            NqEdgeError: NQ-TOKENIZER when a token would get another id than the files state.
        """
        there = {str(token.content): repr(token) for token in core.get_added_tokens_decoder().values()}
        new = [token for _, token in sorted(self.stated.items()) if there.get(token.content) != repr(token)]
        known = {*there, *(token.content for token in new)}
        names = {token.content for token in self.named.values()}
        for token in (*self.named.values(), *self.extra):
            if token.content not in known:
                new.append(token)
                known.add(token.content)
        for token in new:
            token.special = token.special or token.content in names
        core.add_tokens(new)
        for index, token in self.stated.items():
            if core.token_to_id(token.content) != index:
                found = core.token_to_id(token.content)
                raise NqEdgeError(
                    "NQ-TOKENIZER",
                    f"the token {token.content[:80]!r} has the id {index} in the files beside the tokenizer, and "
                    f"{found} in the tokenizer.",
                    "Use the tokenizer files as the model's publisher has them.",
                )


def read_token_names(folder: Path, core: tokenizers.Tokenizer) -> TokenNames:
    """Read the files beside tokenizer.json.

    Args:
        folder: where they lie; each may be absent.
        core: the tokenizer of tokenizer.json, whose flags a token keeps that is named by its text alone.

    Raises:
        NqEdgeError: NQ-TOKENIZER when a file is damaged or holds something else than tokens.
    """
    config = _optional_json(folder, CONFIG_FILE)
    entries = dict(config)
    if not entries.get("extra_special_tokens") and "additional_special_tokens" in entries:
        entries["extra_special_tokens"] = entries.pop("additional_special_tokens")
    try:
        if entries.get("added_tokens_decoder") is not None:
            stated = {int(index): _token(entry) for index, entry in entries["added_tokens_decoder"].items()}
            flags = {token.content: token for token in stated.values()}
        else:
            _take_in_special_map(entries, _optional_json(folder, SPECIAL_FILE))
            stated = _added_tokens(_optional_json(folder, ADDED_FILE), entries)
            flags = {token.content: token for token in stated.values()}
            flags.update({token.content: token for token in core.get_added_tokens_decoder().values()})
        named, extra = _special_tokens(entries, flags)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NqEdgeError("NQ-TOKENIZER", f"{folder} names tokens that are no tokens ({error}).") from error
    return TokenNames(config, named, extra, stated)


def _take_in_special_map(entries: dict[str, Any], special: Mapping[str, Any]) -> None:
    for name, value in special.items():
        if name == "extra_special_tokens" and isinstance(value, list):
            before = list(entries.get(name) or [])
            entries[name] = before + [token for token in value if token not in before]
        else:
            entries[name] = value
    if "additional_special_tokens" in entries and "extra_special_tokens" not in entries:
        entries["extra_special_tokens"] = entries["additional_special_tokens"]


def _added_tokens(ids: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Tokens of added_tokens.json, which has texts and ids; they are special where they are named elsewhere."""
    values = [*(entries.get(name) for name in SPECIAL_TOKEN_NAMES), *_listed(entries.get("extra_special_tokens"))]
    special = {_text(value) for value in values if value}
    tokens = {text: AddedToken(text, special=text in special, normalized=text not in special) for text in ids}
    return {int(index): tokens[text] for text, index in ids.items()}


def _special_tokens(
    entries: Mapping[str, Any], flags: Mapping[str, AddedToken]
) -> tuple[dict[str, AddedToken], tuple[AddedToken, ...]]:
    named = {name: entries[name] for name in SPECIAL_TOKEN_NAMES if entries.get(name)}
    tokens = {name: flags.get(_text(value)) or _token(value) for name, value in named.items()}
    extra = entries.get("extra_special_tokens")
    others = {
        name: value for name, value in entries.items() if name.endswith("_token") and name not in SPECIAL_TOKEN_NAMES
    }
    others.update(extra if isinstance(extra, Mapping) else {})
    tokens.update({name: _token(value) for name, value in others.items() if isinstance(value, str | Mapping) and value})
    return tokens, tuple(_token(value) for value in _listed(extra))


def _listed(extra: Any) -> Iterable[Any]:
    return extra if isinstance(extra, list) else []


def _text(value: Any) -> str:
    """A token's text; files write either the text or an object that holds it under "content"."""
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise TypeError(f"{str(text)[:80]!r} is no text")
    text.encode()  # JSON can hold lone surrogates, which are no Unicode text: UnicodeEncodeError is a ValueError
    return text


def _token(value: Any) -> AddedToken:
    """A token of its own, special where an object does not say otherwise."""
    if not isinstance(value, Mapping):
        return AddedToken(_text(value), special=True, normalized=False)
    given = {name: bool(value[name]) for name in _FLAGS if name in value}
    special = bool(value.get("special", True))
    return AddedToken(_text(value), special=special, **{"normalized": not special, **given})


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    path = path_inside(folder, name)
    return read_json(path, "NQ-TOKENIZER") if path.is_file() else {}
