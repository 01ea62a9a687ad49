# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, from a folder's tokenizer.json, equal to what transformers' `AutoTokenizer` gives.

tokenizer.json is authoritative: whether BOS or EOS is added is its post-processor's business. The older flags
`add_bos_token` and `add_eos_token` of tokenizer_config.json describe the same fact a second time and are not applied
again (transformers 5 drops them as well whenever a tokenizer.json lies beside them), so no BOS is ever doubled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import NqEdgeError
from ..formats.tokenizer_file import TOKENIZER_FILE, read_tokenizer_file
from ..system.files import path_inside, read_json
from ..system.memory import return_freed_memory

__all__ = ["SPECIAL_TOKEN_NAMES", "Tokenizer", "load_tokenizer"]

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A tokenizer and the named special tokens of its model.

    Args:
        core: the tokenizer that tokenizer.json describes.
        special_tokens: names such as "bos_token" -> the token's text.
        config: tokenizer_config.json, as read; {} when there is none.
    """

    def __init__(self, core: tokenizers.Tokenizer, special_tokens: dict[str, str], config: dict[str, Any]) -> None:
        self.core = core
        self.special_tokens = special_tokens
        self.config = config
        with _native("the tokenizer has added tokens that cannot be read"):
            added = core.get_added_tokens_decoder()
        #: id -> text of the special tokens, which texts leave out.
        self.special_texts = {i: token.content for i, token in added.items() if token.special}
        self.special_ids = frozenset(self.special_texts)

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.core.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any string; lone surrogates, which are no characters, become U+FFFD.
            add_special_tokens: let the model's post-processor add BOS or EOS. False for rendered chats, whose
                template wrote them already.

        Raises:
            NqEdgeError: NQ-TOKENIZER when the tokenizer's own description makes it fail on this text.
        """
        text = text.encode("utf-8", "replace").decode("utf-8") if not _is_unicode(text) else text
        with _native("the tokenizer cannot encode this text"):
            return list(self.core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids without a token are skipped.

        Raises:
            NqEdgeError: NQ-TOKENIZER when the tokenizer's own description makes it fail on these ids.
        """
        with _native("the tokenizer cannot decode these ids"):
            return str(self.core.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def token(self, index: int) -> str | None:
        """The vocabulary entry of an id as it is stored, None when there is none."""
        found: str | None = self.core.id_to_token(index)
        return found

    def token_id(self, name: str) -> int | None:
        """Id of a named special token such as "eos_token", None when the model has none."""
        text = self.special_tokens.get(name)
        found: int | None = self.core.token_to_id(text) if text is not None else None
        return found


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a bundle, checkpoint or model folder.

    Args:
        folder: holds tokenizer.json and, usually, tokenizer_config.json.

    Raises:
        NqEdgeError: NQ-TOKENIZER when tokenizer.json is missing or invalid, or a configuration beside it is.
    """
    folder = Path(folder)
    path = path_inside(folder, TOKENIZER_FILE)
    if not path.is_file():
        raise NqEdgeError("NQ-TOKENIZER", f"{folder} has no {TOKENIZER_FILE}.")
    text = read_tokenizer_file(path)
    with _native(f"{path} is not a valid {TOKENIZER_FILE}"):
        core = tokenizers.Tokenizer.from_str(text)
    # Batching settings that were stored with the file would cut or fill single prompts.
    core.no_truncation()
    core.no_padding()
    config = _optional_json(folder, CONFIG_FILE)
    named = _named_tokens(folder, config)
    special = [*named.values(), *_extra_tokens(config)]
    if not all(_is_unicode(text) for text in special):  # JSON can hold lone surrogates
        raise NqEdgeError("NQ-TOKENIZER", f"{folder} names a special token that is not Unicode text.")
    with _native(f"{folder} names a special token that the tokenizer does not take"):
        core.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in special])
    core.encode_special_tokens = bool(config.get("split_special_tokens", False))
    del text
    return_freed_memory()  # parsing leaves more behind than the tokenizer itself takes: 37 MB for 49152 tokens
    return Tokenizer(core, named, config)


@contextlib.contextmanager
def _native(failure: str) -> Iterator[None]:
    """Turn whatever the tokenizer library raises into one error.

    It is native code, and what it is given is a stranger's file: its panics are no subclass of Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, NqEdgeError):
        raise
    except BaseException as error:
        raise NqEdgeError("NQ-TOKENIZER", f"{failure} ({str(error)[:300] or type(error).__name__}).") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    path = path_inside(folder, name)
    return read_json(path, "NQ-TOKENIZER") if path.is_file() else {}


def _text_of(entry: Any) -> str | None:
    """A token's text; configurations write either the text or an object that holds it under "content"."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    entries = dict(config)
    if "added_tokens_decoder" not in config:  # files from before 2023 name them in a second place
        entries.update(_optional_json(folder, SPECIAL_FILE))
    found = {name: _text_of(entries.get(name)) for name in SPECIAL_TOKEN_NAMES}
    return {name: text for name, text in found.items() if text is not None}


def _extra_tokens(config: dict[str, Any]) -> list[str]:
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    entries = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    return [text for entry in entries if (text := _text_of(entry)) is not None]
