# SPDX-License-Identifier: Apache-2.0
"""The process that compiles strangers' grammars first: started by `check`, ended when one takes too long.

Compiling some grammars takes minutes and gigabytes, of whatever llguidance's own limits say ("multipleOf": 123456789
builds a state for each remainder). What compiles here over single bytes compiles over a real vocabulary as well: the
states belong to the grammar.

Run as a script with the folders to import from, as JSON. A question is a compiled form, an answer {"good": True} or
{"error"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


class Bytes:
    """A vocabulary of the 256 bytes and an end."""

    eos_token_id, bos_token_id = 256, None
    tokens = tuple([bytes([byte]) for byte in range(256)] + [b"<eos>"])
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text."""
        return list(text if isinstance(text, bytes) else text.encode())


def prepare(_settings: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """What compiles a form and computes the first mask."""
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    from nanoquant_edge.serving.constraint.limits import parser_limits

    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257, eos_token=256)

    def answer(form: Any) -> dict[str, Any]:
        matcher = LLMatcher(tokenizer, form, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        return {"error": matcher.get_error()[:500]} if matcher.is_error() else {"good": True}

    return answer


if __name__ == "__main__":
    sys.path += json.loads(sys.argv[1])
    from nanoquant_edge.system.worker_side import serve

    serve(prepare)
