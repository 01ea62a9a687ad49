# SPDX-License-Identifier: Apache-2.0
"""Grammars over a model's vocabulary: which tokens may come next."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import NqEdgeError, first_line
from ...formats.tokenizer import Tokenizer
from ...system.extras import install_command
from .check import GrammarCheck
from .grammar import Grammar
from .limits import parser_limits

__all__ = ["Constrainer", "GrammarMask"]

#: Compiled grammars that are kept. Clients send the same schema again and again.
_KEPT = 32


class GrammarMask:
    """What holds one text to a grammar; a `TokenMask`.

    Args:
        matcher: llguidance's, at the beginning of a text.
        words: 32-bit words of a mask.
    """

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher, self._words = matcher, words

    @property
    def finished(self) -> bool:
        """Whether the text is complete and cannot go on."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: uint32 [words], bit i mod 32 of element i div 32 for token i.

        Raises:
            NqEdgeError: NQ-GRAMMAR when a limit is reached in the middle of the text.
        """
        found = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        if self._matcher.is_error():
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar became too complex ({self._matcher.stop_reason()}).")
        return found[: self._words]

    def push(self, token: int) -> None:
        """Be told the token that was chosen.

        Raises:
            NqEdgeError: NQ-GRAMMAR when it was not allowed.
        """
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar became too complex ({self._matcher.stop_reason()}).")


class Constrainer:
    """Makes masks for a model; reads its vocabulary at the first. Several threads may use it.

    Args:
        tokenizer: the model's.
        vocab_size: width of its logits.
        eos_ids: ids that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = sorted(eos_ids)
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()
        self._check = GrammarCheck()

    @property
    def available(self) -> bool:
        """Whether llguidance is installed."""
        return importlib.util.find_spec("llguidance") is not None

    def mask(self, grammar: Grammar) -> GrammarMask:
        """A mask for one text. Compiling may take a second and more; the same grammar again takes none.

        Raises:
            NqEdgeError: NQ-MISSING without llguidance, NQ-GRAMMAR for a grammar that cannot be used, or takes too much
                time or memory, NQ-TOKENIZER for a vocabulary that llguidance cannot read.
        """
        with self._lock:
            matcher = self._kept.get(grammar)
            if matcher is None:
                matcher = self._compiled(grammar)
                self._kept[grammar] = matcher
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar)
            return GrammarMask(matcher.deep_copy(), -(-self._vocab_size // 32))

    def close(self) -> None:
        """End the process that checks grammars."""
        self._check.close()

    def _compiled(self, grammar: Grammar) -> Any:
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise NqEdgeError(
                "NQ-MISSING", "constrained output needs llguidance.", f"Run: {install_command('constrain')}"
            ) from error
        try:
            form = grammar.compiled_form()
        except ValueError as error:
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar cannot be used: {first_line(error)}.") from error
        self._check.check(form)
        matcher = LLMatcher(self._read_vocabulary(), form, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first takes the longest: no text that is being written waits for it
        if matcher.is_error():
            raise NqEdgeError(
                "NQ-GRAMMAR", f"the grammar cannot be used: {first_line(ValueError(matcher.get_error()))}."
            )
        return matcher

    def _read_vocabulary(self) -> Any:
        if self._vocabulary is None:
            from llguidance import LLTokenizer

            if not self._eos_ids:
                raise NqEdgeError("NQ-TOKENIZER", "the model has no end-of-text token, which constrained output needs.")
            try:
                self._vocabulary = LLTokenizer(
                    self._tokenizer.core.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_ids
                )
            except Exception as error:  # whatever a native library says about a vocabulary
                raise NqEdgeError(
                    "NQ-TOKENIZER", f"constrained output is not possible with this tokenizer: {first_line(error)}."
                ) from error
        return self._vocabulary
