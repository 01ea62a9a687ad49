# SPDX-License-Identifier: Apache-2.0
"""The backend on PyTorch: the decoder's step is one CUDA graph over a static key/value cache.

Prompts pass in chunks of one row block each; after them every token of a batch is one replay. `start` and `extend`
generate greedily without waiting for the device between tokens; `forward` is the protocol's call, numpy in and out.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from ...errors import NqEdgeError
from ..inputs import check_inputs
from .attention import Attention
from .decoder import DecodeStep, logits_of, prefill
from .model import DecoderModel
from .prefill_graph import PrefillGraphs

__all__ = ["PREFILL_ROWS", "START_CAPACITY", "TorchBackend"]

#: Rows (tokens of all sequences) that pass through the layers at once.
PREFILL_ROWS = 2048
#: Tokens that the first cache of a batch holds; doubled when it is full.
START_CAPACITY = 512
#: Rows of logits computed at once: float32 logits of a large vocabulary are 0.6 MB a row.
_LOGIT_ROWS = 128


class TorchBackend:
    """A decoder on a GPU (or, slowly, the CPU); see `Backend` for what its methods promise.

    Args:
        model: the weights, on their device.
        max_context: most tokens a sequence may have; None takes the model's limit.
        start_capacity: tokens that the first cache holds.
        graphs: capture each batch size's decode step, and prompts of a few lengths, into CUDA graphs.

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
    ) -> None:
        limit = model.config.max_positions
        if max_context is not None and not (isinstance(max_context, int) and 1 <= max_context <= limit):
            raise NqEdgeError(
                "NQ-OPTION", f"max_context must be from 1 to the model's {limit} tokens, got {max_context!r}."
            )
        self.model: DecoderModel | None = model
        self.kernel = model.kernel
        self.vocab_size = model.config.vocab_size
        self.max_context = limit if max_context is None else max_context
        self.extra: dict[str, np.ndarray] = {}
        self._start_capacity, self._graphs = start_capacity, graphs
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
    def forward(
        self, input_ids: np.ndarray, positions: np.ndarray | None = None, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Append tokens and compute logits; see `Backend.forward`.

        A batch is prefilled in one piece and then continues one token at a time; a single sequence may be continued by
        any number of tokens.
        """
        model = self._open()
        input_ids, positions, lengths = check_inputs(
            input_ids,
            positions,
            lengths,
            past=self._lengths,
            vocab_size=self.vocab_size,
            max_context=self.max_context,
        )
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
            for first in range(0, chosen.shape[0], _LOGIT_ROWS):
                piece = slice(first, first + _LOGIT_ROWS)
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
        self.reset()
        model = self._open()
        input_ids, positions, lengths = check_inputs(
            input_ids, None, lengths, past=self._lengths, vocab_size=self.vocab_size, max_context=self.max_context
        )
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
        self._open()
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
        if self._attention is None or not self._lengths.size or not 0 < length <= self._lengths.min():
            raise NqEdgeError("NQ-OPTION", f"cannot go back to {length} tokens.", "Pass at most the current length.")
        self._lengths = np.full_like(self._lengths, length)
        self._attention.positions.fill_(length)

    def reset(self) -> None:
        """Forget all tokens; cache and graphs stay."""
        self._lengths = np.zeros(0, dtype=np.int64)

    def close(self) -> None:
        """Give back the cache and the weights."""
        self.reset()
        self._step = self._attention = self._prompts = self.model = None

    def __enter__(self) -> TorchBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> DecoderModel:
        if self.model is None:
            raise NqEdgeError("NQ-OPTION", "the backend is closed.", "Open the checkpoint again.")
        return self.model

    def _advance(self, step: DecodeStep, count: int) -> None:
        for _ in range(count):
            step()
        self._lengths = self._lengths + count

    def _prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> list[tuple[int, torch.Tensor]]:
        """Chunks of a prompt through the layers: (first column, hidden states of that chunk)."""
        model, attention = self._open(), self._attention
        assert attention is not None
        ids = torch.from_numpy(input_ids).to(model.device)
        past = int(self._lengths[0])
        width = max(1, PREFILL_ROWS // ids.shape[0])
        chunks: list[tuple[int, torch.Tensor]] = []
        if self._prompts is not None and past == 0 and ids.shape[1] <= width:
            attention.positions.zero_()
            hidden = self._prompts(ids)
            if hidden is not None:
                chunks.append((0, hidden))
        for start in range(0, 0 if chunks else ids.shape[1], width):
            attention.positions.fill_(past + start)
            chunks.append((start, prefill(model, attention, ids[:, start : start + width], past + start)))
        self._lengths = self._lengths + lengths
        attention.positions.copy_(torch.from_numpy(self._lengths))
        return chunks

    def _reserve(self, batch: int, tokens: int) -> tuple[DecodeStep, bool]:
        """Cache and step with room for `tokens` more tokens of `batch` sequences, keeping what is held.

        Returns:
            The step, and whether it is a new one.
        """
        model, old = self._open(), self._attention
        if not self._lengths.size:
            self._lengths = np.zeros(batch, dtype=np.int64)
            if old is not None and old.batch == batch:
                old.positions.zero_()
        needed, held = int(self._lengths.max()) + tokens, int(self._lengths.max())
        if old is not None and self._step is not None and old.batch == batch and needed <= old.capacity:
            return self._step, False
        capacity = max(self._start_capacity, 0 if old is None or old.batch != batch else old.capacity)
        while capacity < needed:
            capacity *= 2
        if not held:
            # Nothing to keep: the old cache goes before the new one comes.
            old = self._attention = self._step = self._prompts = None
        config = model.config
        new = Attention(
            batch=batch,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            capacity=min(capacity, self.max_context),
            frequencies=model.frequencies,
            dtype=model.dtype,
            device=model.device,
        )
        if old is not None:
            new.cache[..., :held, :] = old.cache[..., :held, :]
            new.positions.copy_(old.positions)
        self._attention, self._step = new, DecodeStep(model, new, graph=self._graphs)
        self._prompts = PrefillGraphs(model, new) if self._graphs and model.device.type == "cuda" else None
        return self._step, True
