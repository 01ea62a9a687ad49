# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json from a stranger, made safe for the tokenizers library, which is native code.

Fuzzing found one way to abort the whole process: a byte-pair model with a `continuing_subword_prefix` makes tokenizers
0.23 cut its merges at byte positions inside characters. No supported family has such a prefix, so it is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import NqEdgeError
from ..system.files import read_text
from .lfs_pointer import check_is_no_pointer

__all__ = ["TOKENIZER_FILE", "read_tokenizer_file"]

TOKENIZER_FILE = "tokenizer.json"
_KEY = "continuing_subword_prefix"
_HARMLESS = re.compile(rf'"{_KEY}"\s*:\s*(null|"")\s*[,}}]')
#: JSON may spell a letter of the key as an escape; a file with such escapes is parsed.
_ESCAPED_ASCII = re.compile(r"\\u00[2-7]", re.IGNORECASE)


def read_tokenizer_file(path: Path) -> str:
    """The text of a tokenizer.json, safe to hand to the library.

    Raises:
        NqEdgeError: NQ-TOKENIZER when it is missing, too large, not UTF-8, or of the kind that aborts the process.
    """
    check_is_no_pointer(path, "NQ-TOKENIZER")
    text = read_text(path, "NQ-TOKENIZER")
    count = text.count(_KEY)
    plain = count == len(_HARMLESS.findall(text)) and not _ESCAPED_ASCII.search(text)
    if not plain and _has_prefix(path, text):
        raise NqEdgeError(
            "NQ-TOKENIZER",
            f"{path} has a {_KEY}, which no supported model has.",
            "Use the tokenizer of a supported model.",
        )
    return text


def _has_prefix(path: Path, text: str) -> bool:
    """Whether any object of the file has the key with a text; of a key that comes twice, each counts."""
    found = False

    def look(pairs: list[tuple[str, object]]) -> None:
        nonlocal found
        found = found or any(name == _KEY and isinstance(value, str) and value for name, value in pairs)

    try:
        json.loads(text, object_pairs_hook=look)
    except (ValueError, RecursionError) as error:
        raise NqEdgeError("NQ-TOKENIZER", f"{path} is not a valid {TOKENIZER_FILE} ({error}).") from error
    return found
