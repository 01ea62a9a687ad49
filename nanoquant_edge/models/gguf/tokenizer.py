# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file as a tokenizer.json: its vocabulary, split, flags and special tokens, all checked.

Two kinds are read: byte-level vocabularies ("gpt2"), whose merges are in the file, and SentencePiece ones ("llama"),
which join the neighbours whose piece has the highest score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Core

from ...errors import NqEdgeError, first_line
from ...formats.token_names import TokenNames
from ...formats.tokenizer import Tokenizer
from .content import GgufContent
from .splits import SPLITS, Split

__all__ = ["end_tokens", "read_gguf_template", "read_gguf_tokenizer", "token_ids"]

_PREFIX = "tokenizer.ggml."
#: Field -> name of a special token in tokenizer_config.json.
_NAMED = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "seperator_token_id": "sep_token",  # the format spells it so
    "padding_token_id": "pad_token",
    "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}
#: Tokens that end a text: of a whole sequence, of a turn in a chat, of a message.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
#: For filling in the middle of a text, by their names of today and before.
_FILL = {
    *(f"fim_{part}_token_id" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
    "prefix_token_id", "suffix_token_id", "middle_token_id",
}  # fmt: skip
_READ = {"model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_eos_token",
         "add_space_prefix", "token_type_count", *_NAMED, *_ENDS, *_FILL}  # fmt: skip
#: Fields that are let through where they say that nothing is done.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "add_sep_token": (False,),
    "remove_extra_whitespaces": (False,),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
    "precompiled_charsmap": ([],),
    "suppress_tokens": ([],),
}
#: Types of tokens, as the format numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
#: How a byte-level vocabulary spells a space and the visible characters of ASCII.
_PRINTABLE = ("\u0120", *map(chr, range(0x21, 0x7F)))


def read_gguf_tokenizer(content: GgufContent) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        NqEdgeError: NQ-TOKENIZER for a kind, a split or a field that is not known, for lists of unequal lengths, ids
            beyond the vocabulary, and flags that the file cannot keep.
    """
    reading = _Reading(content)
    try:
        return reading.tokenizer()
    except NqEdgeError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers is native code: its panics are no subclass of Exception
        raise reading.refuse(f"cannot be built ({first_line(error)})") from error


def read_gguf_template(content: GgufContent) -> str | None:
    """The chat template of a file, None without one."""
    template = content.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def token_ids(content: GgufContent) -> dict[str, int]:
    """Ids of start, padding and the like, by config.json's names such as "bos_token_id"."""
    named = _Reading(content).named()
    return {f"{name}_id": index for name, index in named.items() if name in ("bos_token", "pad_token")}


def end_tokens(content: GgufContent) -> list[int]:
    """Ids of the tokens that end a text, the one of a whole sequence first."""
    reading = _Reading(content)
    named = reading.named().get("eos_token")
    found = [named, *(reading.index(key) for key in _ENDS[1:])]
    return list(dict.fromkeys(index for index in found if index is not None))


class _Reading:
    """The tokenizer's fields, checked."""

    def __init__(self, content: GgufContent) -> None:
        self.content = content
        self.tokens: list[str] = self.strings("tokens") or []
        if not self.tokens:
            raise self.refuse("has no tokens")
        self.tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(self.tokens)]
        types = self.get("token_type")
        self.types: list[int] = types if isinstance(types, list) else [_NORMAL] * len(self.tokens)
        rows = content.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in content.tensors else 0
        if len(self.types) != len(self.tokens):
            raise self.refuse(f"has {len(self.tokens)} tokens and {len(self.types)} types of tokens")
        if rows and len(self.tokens) > rows:
            raise self.refuse(f"has {len(self.tokens)} tokens, and the embedding table {rows} rows")
        self.vocabulary = {text: index for index, text in enumerate(self.tokens)}
        if len(self.vocabulary) != len(self.tokens):
            double = next(text for index, text in enumerate(self.tokens) if self.vocabulary[text] != index)
            raise self.refuse(f"has the token {double[:80]!r} twice")
        for key in content.keys:
            name = key.removeprefix(_PREFIX)
            if name != key and name not in _READ and self.get(name) not in _HARMLESS.get(name, ()):
                raise self.refuse(f"has {key[:200]} = {str(self.get(name))[:80]!r}, which is not known")

    def get(self, name: str) -> Any:
        return self.content.get(_PREFIX + name)

    def refuse(self, what: str) -> NqEdgeError:
        return NqEdgeError(
            "NQ-TOKENIZER", f"the tokenizer of {self.content.path} {what}.", "Use the Hugging Face folder."
        )

    def strings(self, name: str) -> list[str] | None:
        value = self.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise self.refuse(f"has {name} that are no texts")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(f"has {name} = {str(value)[:80]!r}")
        return default if value is None else value

    def index(self, name: str) -> int | None:
        """A token id; None where the file does not have the field."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise self.refuse(f"has {name} = {str(value)[:80]}, and {len(self.tokens)} tokens")
        return value

    def named(self) -> dict[str, int]:
        """Name such as "bos_token" -> id. SentencePiece vocabularies have usual ids where the file names none."""
        usual = {"unk_token": 0, "bos_token": 1, "eos_token": 2} if self.get("model") == "llama" else {}
        found = {name: self.index(key) for key, name in _NAMED.items()}
        ids = {name: usual.get(name) if index is None else index for name, index in found.items()}
        return {name: index for name, index in ids.items() if index is not None and index < len(self.tokens)}

    def tokenizer(self) -> Tokenizer:
        kind, split = self.get("model"), None
        if kind == "gpt2":
            split = self.split()
            core = self.byte_level(split)
        elif kind == "llama":
            core = self.sentence_pieces()
        else:
            raise self.refuse(f"is of the kind {str(kind)[:80]!r}; gpt2 and llama are read")
        named = self.named()
        ends = (self.index(key) for key in (*_ENDS, *sorted(_FILL)))
        special = {*named.values(), *(index for index in ends if index is not None)}
        control = [i for i, kind in enumerate(self.types) if i in special or kind in (_UNKNOWN, _CONTROL)]
        defined = [i for i, kind in enumerate(self.types) if i not in special and kind == _USER_DEFINED]
        core.add_special_tokens([AddedToken(self.tokens[i], special=True, normalized=False) for i in control])
        core.add_tokens([AddedToken(self.tokens[i], special=False, normalized=False) for i in defined])
        core.post_processor = self.frame(named, starts=split.starts if split else True)
        config = {name: self.tokens[index] for name, index in named.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
        tokens = {name: AddedToken(text, special=True, normalized=False) for name, text in config.items()}
        made = Tokenizer(core, TokenNames(settings, tokens))
        if made.size != len(self.tokens):
            raise self.refuse(f"has {len(self.tokens)} tokens and becomes one of {made.size}")
        return made

    def frame(self, named: dict[str, int], starts: bool) -> Any:
        """What is put around a text: a start token, an end token."""
        before, behind, special = list[str](), list[str](), list[tuple[str, int]]()
        for pieces, name, flag, default in (
            (before, "bos_token", "add_bos_token", starts),
            (behind, "eos_token", "add_eos_token", False),
        ):
            if not self.flag(flag, default):
                continue
            if name not in named:
                raise self.refuse(f"has {flag}, and no {name}_id")
            pieces.append(f"{self.tokens[named[name]]}:0")
            special.append((self.tokens[named[name]], named[name]))
        single = [*before, "$A:0", *behind]
        pair = [*single, *before, "$B:0", *behind]
        return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)

    def split(self) -> Split:
        name = self.get("pre")
        if name is None:
            raise self.refuse("does not say how it splits words (tokenizer.ggml.pre), as files before May 2024 do not")
        if name not in SPLITS:
            raise self.refuse(f"splits words by {str(name)[:80]!r}, which is not known; {', '.join(SPLITS)} are")
        if self.flag("add_space_prefix", False):
            raise self.refuse("puts a space before a text, which byte-level vocabularies do not")
        return SPLITS[name]

    def byte_level(self, split: Split) -> Any:
        # Bytes that no text of the training had may be absent; these are not in any real vocabulary.
        lacking = [letter for letter in _PRINTABLE if letter not in self.vocabulary]
        if lacking:
            raise self.refuse(f"has no token for the byte {lacking[0]!r}: its vocabulary is not byte-level")
        merges = self.strings("merges")
        if merges is None:
            raise self.refuse("has no merges")
        pairs = [(one[: one.find(" ", 1)], one[one.find(" ", 1) + 1 :]) for one in merges]
        core = Core(models.BPE(self.vocabulary, pairs, ignore_merges=split.whole_words))
        if split.normalizes:
            core.normalizer = normalizers.NFC()
        core.pre_tokenizer = split.pre_tokenizer()
        core.decoder = decoders.ByteLevel()
        return core

    def sentence_pieces(self) -> Any:
        if self.get("pre") not in (None, "default"):
            raise self.refuse(f"is of the kind 'llama' and splits words by {str(self.get('pre'))[:80]!r}")
        scores = self.get("scores")
        if not isinstance(scores, list) or len(scores) != len(self.tokens):
            raise self.refuse("has no score for each token")
        whole = all(f"<0x{byte:02X}>" in self.vocabulary for byte in range(256))
        unknown = self.named().get("unk_token")
        if unknown is None and not whole:
            raise self.refuse("has neither a token for unknown characters nor one for each byte")
        prefix = self.flag("add_space_prefix", True)
        core = Core(
            models.BPE(
                self.vocabulary,
                list(self.merges(scores)),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=whole,
            )
        )
        core.normalizer = normalizers.Sequence(
            [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
        )
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        core.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return core

    def merges(self, scores: list[float]) -> Iterator[tuple[str, str]]:
        """Every way to join two pieces into a third, the third's score deciding which comes first."""
        pieces = [i for i, kind in enumerate(self.types) if kind == _NORMAL and not _BYTE.fullmatch(self.tokens[i])]
        known = {self.tokens[index] for index in pieces}
        for index in sorted(pieces, key=lambda i: (-scores[i], i)):
            text = self.tokens[index]
            for cut in range(len(text) - 1, 0, -1):
                if text[:cut] in known and text[cut:] in known:
                    yield text[:cut], text[cut:]
