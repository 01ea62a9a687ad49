# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, from a folder's tokenizer.json and the files that name tokens beside it.

There is one tokenizer for everything: calibration, validation and prompts. tokenizer.json is authoritative: whether BOS
or EOS is added is its post-processor's business. The older flags `add_bos_token` and `add_eos_token` of
tokenizer_config.json describe the same fact a second time and are not applied again (transformers 5 drops them as well
whenever a tokenizer.json lies beside them), so no BOS is ever doubled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import NqEdgeError
from ..system.files import path_inside
from ..system.memory import return_freed_memory
from .token_names import CONFIG_FILE, SPECIAL_TOKEN_NAMES, TokenNames, read_token_names
from .tokenizer_file import TOKENIZER_FILE, read_tokenizer_file

__all__ = ["SPECIAL_TOKEN_NAMES", "Tokenizer", "load_tokenizer"]


class Tokenizer:
    """A tokenizer and the named special tokens of its model.

    Args:
        core: the tokenizer that tokenizer.json describes; the named tokens are added to it.
        names: the tokens that files beside it name.

    Attributes:
        core: the tokenizer with all its tokens.
        special_tokens: names such as "bos_token" -> the token's text.
        config: tokenizer_config.json, as read; {} when there is none.
        special_ids: ids of special tokens.
        completed: whether the named tokens changed anything that tokenizer.json says.
    """

    def __init__(self, core: tokenizers.Tokenizer, names: TokenNames) -> None:
        with _native("the tokenizer has added tokens that cannot be read, or does not take the named ones"):
            before = _added_tokens(core)
            names.add_to(core)
            self.completed = _added_tokens(core) != before
            added = core.get_added_tokens_decoder()
        core.encode_special_tokens = bool(names.config.get("split_special_tokens", False))
        self.core = core
        self.special_tokens = {name: str(token.content) for name, token in names.named.items()}
        self.config: Mapping[str, Any] = names.config
        #: id -> text of the special tokens, which texts leave out.
        self.special_texts = {i: str(token.content) for i, token in added.items() if token.special}
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json, with every token, and tokenizer_config.json into a folder; transformers reads both."""
        self.core.save(str(Path(folder) / TOKENIZER_FILE))
        content = json.dumps(dict(self.config), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / CONFIG_FILE).write_text(content, encoding="utf-8")


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
    tokenizer = Tokenizer(core, read_token_names(folder, core))
    del text
    return_freed_memory()  # parsing leaves more behind than the tokenizer itself takes: 37 MB for 49152 tokens
    return tokenizer


def _added_tokens(core: tokenizers.Tokenizer) -> dict[int, str]:
    """Every added token with its flags, by id."""
    return {index: repr(token) for index, token in core.get_added_tokens_decoder().items()}


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
