# SPDX-License-Identifier: Apache-2.0
"""One text while it is written: its tokens are chosen, become characters, and its end is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..formats.tokenizer import Tokenizer
from ..runtimes.sampling import Sampler, log_probabilities
from ..runtimes.streaming import StopMatcher, TextStream, stop_strings
from .requests import Piece, Request, TokenChoice

__all__ = ["Writing"]


class Writing:
    """A request's tokens and text so far.

    Args:
        request: what is asked for.
        tokenizer: the model's.
        ends: ids that end a text.
        most: most new tokens that the context has room for.

    Attributes:
        ids: prompt and new tokens.
        prompt: tokens of the prompt.
        reason: why the text ended; None while it goes on.
        text: what was shown so far.

    Raises:
        NqEdgeError: NQ-OPTION for stop strings that are none.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, *, ends: frozenset[int], most: int) -> None:
        self.ids = [int(token) for token in request.ids]
        self.prompt = len(self.ids)
        self.reason: str | None = None
        self.text = ""
        self._ends = frozenset() if request.ignore_eos else ends
        self._most = min(int(request.max_new_tokens), most)
        self._logprobs, self._mask = request.logprobs, request.mask
        self._sampler = Sampler(request.sampling, self.ids)
        self._stream = TextStream(tokenizer)
        self._stops = StopMatcher(stop_strings(request.stop), tokenizer.special_texts)

    @property
    def new(self) -> int:
        """Tokens written so far."""
        return len(self.ids) - self.prompt

    def take(self, logits: np.ndarray, goes_on: Callable[[int, int], bool] = lambda index, token: False) -> Piece:
        """Choose tokens from the logits of one or more positions.

        Args:
            logits: float32 [positions, vocabulary].
            goes_on: asked after each token but the last with its index and itself: whether the next position's logits
                are of this text, because the token is the one that was guessed.

        Raises:
            Exception: what the mask raises, and NqEdgeError as `Sampler.choose`.
        """
        tokens: list[TokenChoice] = []
        shown = ""
        for index, scores in enumerate(logits):
            token = self._sampler.choose(scores, self._mask.allowed() if self._mask is not None else None)
            self.ids.append(token)
            tokens.append(self._described(token, scores))
            shown += self._shown(token)
            if self.reason is not None or index + 1 == len(logits) or not goes_on(index, token):
                break
        if self.reason is not None:
            shown += self._rest()
        self.text += shown
        return Piece(shown, tuple(tokens))

    def stop(self, reason: str) -> Piece:
        """End the text from outside; returns what was held back."""
        self.reason = reason
        rest = self._rest()
        self.text += rest
        return Piece(rest)

    def _described(self, token: int, scores: np.ndarray) -> TokenChoice:
        if self._logprobs is None:
            return TokenChoice(token)
        own, top = log_probabilities(scores, token, self._logprobs)
        return TokenChoice(token, own, top)

    def _shown(self, token: int) -> str:
        """Add a token to the text; returns what became final."""
        if self._mask is not None:
            self._mask.push(token)
        if token in self._ends:
            self.reason = "eos"
            return ""
        shown = self._stops.push(self._stream.push(token) + self._stops.mark(token))
        if self._stops.stopped or (self._mask is not None and self._mask.finished):
            self.reason = "stop"
        elif self.new >= self._most:
            self.reason = "length"
        return shown

    def _rest(self) -> str:
        rest = self._stops.push(self._stream.flush()) + self._stops.flush()
        if self._stops.stopped:
            self.reason = "stop"
        return rest
