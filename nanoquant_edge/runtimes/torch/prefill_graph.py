# SPDX-License-Identifier: Apache-2.0
"""Prompts as CUDA graphs: a few lengths, each captured when it comes up for the second time.

A short prompt's layers take less time than the host needs to launch them one by one. A prompt is padded on the right
to the next length: causal attention keeps the padding out of every result, and what it leaves in the cache lies past
the prompt's end, where the next tokens overwrite it before anything reads it.
"""

from __future__ import annotations

import torch

from .attention import Attention
from .decoder import prefill
from .model import DecoderModel

__all__ = ["LENGTHS", "PrefillGraphs"]

#: tokens a sequence
LENGTHS = (32, 64, 128, 256, 512)


class PrefillGraphs:
    """The graphs of one cache.

    Args:
        model: the decoder, on a GPU.
        attention: the cache; its positions must be zero at each call.
    """

    def __init__(self, model: DecoderModel, attention: Attention) -> None:
        self._model, self._attention = model, attention
        self._seen: set[int] = set()
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Append a prompt to the empty cache.

        Args:
            ids: int64 (batch, tokens) on the device.

        Returns:
            The last block's output (batch, tokens, hidden_size), valid until the next call; None when no graph serves
            this length yet, and nothing was done.
        """
        batch, tokens = ids.shape
        length = next((length for length in LENGTHS if length >= tokens), None)
        if length is None or length > self._attention.capacity:
            return None
        if length not in self._captured:
            if length not in self._seen:
                self._seen.add(length)
                return None
            self._captured[length] = self._capture(batch, length)
        graph, padded, hidden = self._captured[length]
        padded.zero_()
        padded[:, :tokens] = ids
        graph.replay()
        return hidden[:, :tokens]

    def _capture(self, batch: int, length: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        padded = torch.zeros((batch, length), dtype=torch.int64, device=self._model.device)
        side = torch.cuda.Stream(self._model.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            prefill(self._model, self._attention, ids=padded, start=0)  # scratch memory grows here, not in the capture
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize(self._model.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = prefill(self._model, self._attention, ids=padded, start=0)
        return graph, padded, hidden
