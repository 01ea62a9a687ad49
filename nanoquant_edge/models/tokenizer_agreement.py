# SPDX-License-Identifier: Apache-2.0
"""A model's tokenizer files are read twice: here, for calibration, validation and prompts, and by transformers.

Both readings cut the same texts when a model is loaded, and the calibration text when it is known. What is compared is
transformers' plain reading of tokenizer.json: some of its model classes (of GPT-2's and Qwen-2's names among them)
leave the file's split aside and build one of their own, and the file is right then, not the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer

__all__ = ["check_tokenizers", "hard_texts"]

#: Spaces, digits, contractions, line ends, scripts, combining marks, joined emoji, bytes and pieces spelled out.
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " ",
    "   leading and trailing   ",
    "a  b   c    d\t\te \t f",
    "\n\n\nline\r\n\r\n ends\n \n",
    "1234567 12,345.67 v1.2.3 2e-5 ①½³ ٣٤٥",
    "it's WE'LL they'Ve I'm d'you don't rock'n'roll",
    "x = [i**2 for i in range(10)]  # comment\n\treturn {'a': 1}",
    "naïve Größe façade \u00e9 e\u0301 \ufb01 \uff21",
    "東京は日本の首都です。 서울 ภาษาไทย Ελληνικά привет",
    "🙂🚀👩‍👩‍👧 \u200b\ufeff\u00a0\u2581<0x41>",
    "http://a.b/c?d=e&f=g user@host.tld ... --- !!! ???",
)
_MOST_TOKENS = 64


def hard_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts that tokenizers cut differently when anything of them is read wrongly, each special token among words.

    Args:
        tokenizer: whose tokens are put into texts, the first of them.
    """
    found = [str(token.content) for token in tokenizer.core.get_added_tokens_decoder().values()]
    texts = [f"a {token} b{token}c  {token}\n{token}" for token in found[:_MOST_TOKENS]]
    return [*_TEXTS, *texts]


def check_tokenizers(ours: Tokenizer, theirs: Any, texts: Iterable[str], name: str) -> None:
    """Refuse tokenizer files that this package and transformers read in two ways.

    Args:
        ours: our reading.
        theirs: transformers' reading.
        texts: what to cut; Unicode without lone surrogates.
        name: what to call the model in messages.

    Raises:
        NqEdgeError: NQ-TOKENIZER with the first piece of a text that becomes other tokens.
    """
    for text in texts:
        found, expected = ours.encode(text), list(theirs(text, verbose=False)["input_ids"])
        if found == expected:
            continue
        same = [one == other for one, other in zip(found, expected, strict=False)]
        first = same.index(False) if False in same else len(same)
        before = ours.decode(found[:first], skip_special_tokens=False)
        here, there = ([ours.token(i) for i in ids[first : first + 4]] for ids in (found, expected))
        raise NqEdgeError(
            "NQ-TOKENIZER",
            f"the tokenizer of {name} is read in two ways: behind {before[-40:]!r} of a text come the tokens {here} "
            f"here and {there} in transformers.",
            "Use the tokenizer files as the model's publisher has them, or report the model.",
        )
