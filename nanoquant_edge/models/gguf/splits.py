# SPDX-License-Identifier: Apache-2.0
"""How byte-level vocabularies split a text into words before they look for pieces, by `tokenizer.ggml.pre`.

A split is a list of patterns: each cuts what the ones before it left into its matches and what lies between them. The
patterns are those that the models' own tokenizer.json files state; which name means which of them, whether a word that
is in the vocabulary is taken whole, and whether a start token is put in front unless the file says otherwise, is how
llama.cpp reads the names (src/llama-vocab.cpp). A name that is not here is refused: with another split, a text becomes
other tokens than the model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SPLITS", "Split"]

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_LINES = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|{_SPACES}"
_LLAMA3 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_LINES}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_SIGNS}[\r\n]*|{_LINES}|{_SPACES}"
_SEED = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_SPACES}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_SIGNS}[\r\n/]*|{_LINES}|{_SPACES}"
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")


@dataclass(frozen=True)
class Split:
    """How a vocabulary splits texts.

    Attributes:
        patterns: regular expressions, applied one after the other.
        whole_words: a word that is in the vocabulary is one token, whatever the merges say.
        starts: a start token is put in front of a text unless the file says otherwise.
        normalizes: composes characters first (NFC).
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    starts: bool = False
    normalizes: bool = False

    def pre_tokenizer(self) -> Any:
        """The split as a pre-tokenizer of the tokenizers library, bytes spelled as letters behind it."""
        from tokenizers import Regex, pre_tokenizers

        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_DIGITS_FIRST = Split((r"\p{N}", _GPT2))
_WITH_START = Split((_LLAMA3,), whole_words=True, starts=True)

#: Name of a split -> what it does.
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum", "a.x-4.0", "trillion"), Split((_GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS_FIRST
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _WITH_START),
    **dict.fromkeys(("smaug-bpe", "dbrx"), Split((_LLAMA3,))),
    "qwen2": Split((_QWEN2,), normalizes=True),
    "deepseek-r1-qwen": Split((_QWEN2,)),
    "deepseek-coder": Split(_DEEPSEEK_CODER),
    "seed-coder": Split((_SEED,)),
    "tekken": Split((_TEKKEN,), whole_words=True, starts=True),
}
