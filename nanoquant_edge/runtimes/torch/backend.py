# SPDX-License-Identifier: Apache-2.0
"""The backend on PyTorch: the decoder's step is one CUDA graph over a static key/value cache.

Prompts pass in chunks of one row block each; after them every token of a batch is one replay. `start` and `extend`
generate greedily without waiting for the device between tokens; `forward` is the protocol's call, numpy in and out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...errors import NqEdgeError
from ..backend import SerialBackend
from ..options import OpenOptions
from .attention import Attention, AttentionShape
from .decoder import DecodeStep, logits_of, prefill
from .model import DecoderModel
from .prefill_graph import PrefillGraphs

__all__ = ["PREFILL_ROWS", "START_CAPACITY", "TorchBackend"]

#: Rows (tokens of all sequences) that pass through the layers at once.
PREFILL_ROWS = 2048
#: Tokens that the first cache of a batch holds; doubled when it is full.
START_CAPACITY = 512
#: Rows of logits computed at once: float32 logits of a large vocabulary are 0.6 MB a row.
LOGIT_ROWS = 128


class TorchBackend(SerialBackend):
    """A decoder on a GPU (or, slowly, the CPU); see `Backend` for what its methods promise.

    Args:
        model: the weights, on their device.
        max_context: most tokens a sequence may have; None takes the model's limit.
        start_capacity: tokens that the first cache holds.
        graphs: capture each batch size's decode step, and prompts of a few lengths, into CUDA graphs.
        prefill_rows: rows (tokens of all sequences) that pass through the layers at once.
        logit_rows: rows of logits computed at once.

    Raises:
        NqEdgeError: NQ-OPTION for a `max_context` beyond the model's.
    """

    name = "torch"

    def __init__(
        self,
        model: DecoderModel,
        *,
        max_context: int | None = None,
        start_capacity: int = START_CAPACITY,
        graphs: bool = True,
        prefill_rows: int = PREFILL_ROWS,
        logit_rows: int = LOGIT_ROWS,
    ) -> None:
        context = OpenOptions(max_context=max_context).context(model.config.max_positions, "model")
        super().__init__(model.config.vocab_size, context)
        self.model: DecoderModel | None = model
        self.kernel = model.kernel
        self._start_capacity, self._graphs = start_capacity, graphs
        self._prefill_rows, self._logit_rows = prefill_rows, logit_rows
        self._lengths = np.zeros(0, dtype=np.int64)
        self._attention: Attention | None = None
        self._step: DecodeStep | None = None
        self._prompts: PrefillGraphs | None = None

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        *,
        device: str = "cuda",
        dtype: torch.dtype | None = None,
        max_context: int | None = None,
        graphs: bool = True,
    ) -> TorchBackend:
        """Load a checkpoint; see `DecoderModel.from_checkpoint` for the arguments and errors."""
        model = DecoderModel.from_checkpoint(folder, device=device, dtype=dtype)
        return cls(model, max_context=max_context, graphs=graphs)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]."""
        return self._lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens for which cache memory is held."""
        return 0 if self._attention is None else self._attention.capacity

    @torch.inference_mode()
    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        model = self._loaded()
        batch, tokens = input_ids.shape
        step, _ = self._reserve(batch, tokens)
        if tokens == 1:
            step.tokens.copy_(torch.from_numpy(input_ids[:, 0]))
            self._advance(step, 1)
            logits = step.logits[:, None].expand(-1, positions.shape[1], -1)
            return logits.cpu().numpy().copy()
        picks = torch.from_numpy(positions).to(model.device)
        result = torch.empty((batch, positions.shape[1], self.vocab_size), dtype=torch.float32, device="cpu")
        for start, hidden in self._prefill(input_ids, lengths):
            inside = (picks >= start) & (picks < start + hidden.shape[1])
            rows, columns = inside.nonzero(as_tuple=True)
            chosen = hidden[rows, picks[rows, columns] - start]
            for first in range(0, chosen.shape[0], self._logit_rows):
                piece = slice(first, first + self._logit_rows)
                result[rows[piece].cpu(), columns[piece].cpu()] = logits_of(model, chosen[piece]).cpu()
        return result.numpy()

    @torch.inference_mode()
    def start(self, input_ids: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Forget everything, read prompts and choose the first new tokens greedily.

        Args:
            input_ids: int64 [batch, sequence], at least two tokens each, padded on the right.
            lengths: int64 [batch], valid tokens of each row; all by default.

        Returns:
            int64 [batch], the first new tokens, which `extend` continues.

        Raises:
            NqEdgeError: as `forward`.
        """
        with self._computing():
            self._reset()
            model = self._loaded()
            input_ids, positions, lengths = self._checked(input_ids, None, lengths)
            step, _ = self._reserve(*input_ids.shape)
            last = torch.from_numpy(positions[:, 0]).to(model.device)
            for start, hidden in self._prefill(input_ids, lengths):
                inside = ((last >= start) & (last < start + hidden.shape[1])).nonzero()[:, 0]
                if inside.numel():
                    chosen = logits_of(model, hidden[inside, last[inside] - start]).argmax(-1)
                    step.tokens[inside] = chosen
            return step.tokens.cpu().numpy().copy()

    @torch.inference_mode()
    def extend(self, count: int) -> np.ndarray:
        """Generate `count` more tokens greedily, without end-of-sequence checks.

        Returns:
            int64 [batch, count].

        Raises:
            NqEdgeError: NQ-OPTION before `start`, NQ-PROMPT when the tokens do not fit the context.
        """
        with self._computing():
            if self._step is None or not self._lengths.size:
                raise NqEdgeError("NQ-OPTION", "extend needs a prompt.", "Call start first.")
            before, total = self._lengths.copy(), int(self._lengths.max()) + count
            if count < 1 or total > self.max_context:
                raise NqEdgeError("NQ-PROMPT", f"{total} tokens do not fit the context of {self.max_context} tokens.")
            tokens = self._step.tokens
            step, moved = self._reserve(before.size, count)
            if moved:
                step.tokens.copy_(tokens)
            self._advance(step, count)
            chosen = step.chosen.cpu().numpy()
            return np.stack([chosen[row, first : first + count] for row, first in enumerate(before)])

    @torch.inference_mode()
    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens of every sequence; the next token is the last one chosen.

        Raises:
            NqEdgeError: NQ-OPTION when a sequence is not as long.
        """
        with self._computing():
            if self._attention is None or not self._lengths.size or not 0 < length <= self._lengths.min():
                raise NqEdgeError(
                    "NQ-OPTION", f"cannot go back to {length} tokens.", "Pass at most the current length."
                )
            self._lengths = np.full_like(self._lengths, length)
            self._attention.positions.fill_(length)

    def _reset(self) -> None:
        self._lengths = np.zeros(0, dtype=np.int64)

    def _close(self) -> None:
        self._reset()
        self._step = self._attention = self._prompts = self.model = None

    def _loaded(self) -> DecoderModel:
        assert self.model is not None  # it goes when the backend is closed, and then nothing is computed
        return self.model

    def _advance(self, step: DecodeStep, count: int) -> None:
        for _ in range(count):
            step()
        self._lengths = self._lengths + count

    def _prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> list[tuple[int, torch.Tensor]]:
        """Chunks of a prompt through the layers: (first column, hidden states of that chunk)."""
        model, attention = self._loaded(), self._attention
        assert attention is not None
        ids = torch.from_numpy(input_ids).to(model.device)
        past = int(self._lengths[0])
        width = max(1, self._prefill_rows // ids.shape[0])
        chunks: list[tuple[int, torch.Tensor]] = []
        if self._prompts is not None and past == 0 and ids.shape[1] <= width:
            attention.positions.zero_()
            hidden = self._prompts(ids)
            if hidden is not None:
                chunks.append((0, hidden))
        for start in range(0, 0 if chunks else ids.shape[1], width):
            attention.positions.fill_(past + start)
            chunks.append((start, prefill(model, attention, ids=ids[:, start : start + width], start=past + start)))
        self._lengths = self._lengths + lengths
        attention.positions.copy_(torch.from_numpy(self._lengths))
        return chunks

    def _reserve(self, batch: int, tokens: int) -> tuple[DecodeStep, bool]:
        """Cache and step with room for `tokens` more tokens of `batch` sequences, keeping what is held.

        Returns:
            The step, and whether it is a new one.
        """
        model, old = self._loaded(), self._attention
        if not self._lengths.size:
            self._lengths = np.zeros(batch, dtype=np.int64)
            if old is not None and old.batch == batch:
                old.positions.zero_()
        filled = int(self._lengths.max())
        needed = filled + tokens
        if old is not None and self._step is not None and old.batch == batch and needed <= old.capacity:
            return self._step, False
        capacity = max(self._start_capacity, 0 if old is None or old.batch != batch else old.capacity)
        while capacity < needed:
            capacity *= 2
        if not filled:
            # Nothing to keep: the old cache goes before the new one comes.
            old = self._attention = self._step = self._prompts = None
        config = model.config
        shape = AttentionShape(
            batch=batch,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            capacity=min(capacity, self.max_context),
        )
        new = Attention(shape, frequencies=model.frequencies, dtype=model.dtype, device=model.device)
        if old is not None:
            new.cache[..., :filled, :] = old.cache[..., :filled, :]
            new.positions.copy_(old.positions)
        self._attention, self._step = new, DecodeStep(model, new, graph=self._graphs)
        self._prompts = PrefillGraphs(model, new) if self._graphs and model.device.type == "cuda" else None
        return self._step, True
