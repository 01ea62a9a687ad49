# SPDX-License-Identifier: Apache-2.0
"""One more token for each row of a batch, in memory that is given once: the step of which a model's writing consists.

Each row holds a text of its own, and a new one may begin in any of them at any step. All rows write their keys and
values to the same slot of a ring, so a row's text is told from what stood there before by its age alone. Nothing has a
changing shape or address, so on a GPU the step is one CUDA graph for each length of cache that is read.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import NqEdgeError
from .capture import captured
from .precision import compute_in

__all__ = ["StaticStep", "affordable_rows", "written_in_steps"]

#: How transformers finds our attention.
_ATTENTION = "nanoquant_one_token"
#: Lengths of cache that a step reads: the least one that holds what was written.
_SHORTEST_READ = 128
#: What rows may take of a GPU's free memory, and at most in bytes: more rows than that make nothing faster.
_MEMORY_SHARE, _MOST_BYTES = 0.25, 12 << 30
#: Most rows on a CPU and on a GPU.
_CPU_ROWS, _GPU_ROWS = 32, 1024


def affordable_rows(model: Any, slots: int, dtype: torch.dtype, free: int | None = None) -> int:
    """How many rows are written at a time: 32 on a CPU; what a quarter of a GPU's free memory holds, 1024 at most.

    A row takes its cache, and about six numbers for each entry of the vocabulary; all together at most 12 GiB.

    Args:
        model: transformers causal language model.
        slots: tokens of a row's cache.
        dtype: of the cache.
        free: bytes that are free on the device; None asks it.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * slots * dtype.itemsize
    scores = 4 * 4 * config.num_attention_heads * slots
    most = _CPU_ROWS
    if model.device.type == "cuda":
        most = _GPU_ROWS
        free = _free(model.device) if free is None else free
    if free is None:
        return most
    room = min(_MEMORY_SHARE * free, _MOST_BYTES)
    return int(max(1, min(most, room // (cache + scores + 6 * 4 * config.vocab_size))))


def _free(device: torch.device) -> int:
    """Bytes that are free on a GPU, with those that PyTorch holds for whoever asks next."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


class StaticStep:
    """Feeds one token to each row and draws the next one. Use it inside of `written_in_steps`.

    Args:
        model: transformers causal language model in evaluation mode, on its device.
        rows: texts at the same time.
        slots: tokens that a text can look back to.
        dtype: of matrix products and of the cache.
        temperature: of the draw; 0 takes the likeliest token.
    """

    def __init__(self, model: Any, rows: int, slots: int, *, dtype: torch.dtype, temperature: float) -> None:
        self._model, self._dtype, self._temperature = model, dtype, temperature
        self.rows, self.slots = rows, slots
        config = model.config.get_text_config()
        #: The longest text that the model was made for, in tokens.
        self.positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        device = model.device
        self._ids, self._ages, self._drawn = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(3))
        self._chances = torch.zeros(rows, 1, device=device)
        self._ring = _Ring(slots, dtype, device)
        self._steps: dict[int, Callable[[], None]] = {}
        self._written = 0

    def restart(self) -> None:
        """Forget what was written, so that short caches are read again."""
        self._written = 0

    def close(self) -> None:
        """Give the memory back; a graph and the step that it repeats hold each other."""
        self._steps.clear()
        self._ring.clear()

    @torch.no_grad()
    def __call__(self, ids: Tensor, ages: Tensor, chances: Tensor) -> Tensor:
        """The next token of each row.

        Args:
            ids: int64 (rows,), the token that each row is given, on the CPU.
            ages: int64 (rows,), how many tokens of its present text stand before it.
            chances: float32 (rows,) between 0 and 1, which decide the draws; without effect at temperature 0.

        Returns:
            int64 (rows,) on the CPU.

        Raises:
            NqEdgeError: NQ-NUMERIC when the logits are not finite.
        """
        self._ids.copy_(ids)
        self._ages.copy_(ages)
        self._chances.copy_(chances[:, None])
        self._ring.slot.fill_(self._written % self.slots)
        self._written += 1
        read = next(length for length in _reads(self.slots) if length >= min(self._written, self.slots))
        self._ring.read = read
        if read in self._steps:
            self._steps[read]()
        else:  # a first plain run gives the cache its memory; a graph then repeats the step, which changes nothing
            self._step()
            self._steps[read] = captured(self._step, self._model.device, lambda: None)
        drawn = self._drawn.cpu()
        if int(drawn.min()) < 0:
            raise NqEdgeError("NQ-NUMERIC", "the logits of the model that writes text are not finite.")
        return drawn

    def _step(self) -> None:
        ring = self._ring
        distance = torch.remainder(ring.slot - torch.arange(ring.read, device=ring.slot.device), self.slots)
        # Beyond a text's own beginning everything is infinitely far. Numbers are filled in: `where` would copy them to
        # the GPU first, which a graph cannot repeat.
        before = distance[None] > self._ages[:, None]
        distances = distance.float().expand(self.rows, -1).masked_fill(before, math.inf)[:, None, None]
        name = "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"
        with compute_in(self._dtype, self._model.device):
            logits = self._model(
                input_ids=self._ids[:, None],
                position_ids=self._ages.clamp(max=self.positions - 1)[:, None],
                attention_mask=distances,
                use_cache=True,
                **{name: ring},
            ).logits[:, -1]
        if not self._temperature:
            highest, drawn = logits.max(-1)
        else:
            sums = torch.softmax(logits.float() / self._temperature, -1).cumsum(-1)
            highest = sums[:, -1]
            drawn = torch.searchsorted(sums, self._chances * sums[:, -1:], right=True)[:, 0]
        drawn = drawn.clamp(max=logits.shape[-1] - 1)
        self._drawn.copy_(drawn.masked_fill(~torch.isfinite(highest), -1))


class _Ring:
    """What transformers takes for a cache: each layer's keys and values, one slot of which every step writes."""

    def __init__(self, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.read = slots
        self._slots, self._dtype = slots, dtype
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put (rows, heads, 1, width) away and return everything that is read, (rows, heads, read, width)."""
        if layer not in self._layers:
            rows, heads, _one, width = keys.shape
            shape = (rows, heads, self._slots, width)
            self._layers[layer] = tuple(torch.zeros(shape, dtype=self._dtype, device=keys.device) for _ in "kv")  # type: ignore[assignment]
        kept = self._layers[layer]
        for old, new in zip(kept, (keys, values), strict=True):
            old.index_copy_(2, self.slot, new.to(self._dtype))
        return kept[0][:, :, : self.read], kept[1][:, :, : self.read]

    def clear(self) -> None:
        """Give the memory back."""
        self._layers.clear()

    def get_seq_length(self, *_: Any) -> int:
        """Asked for positions, which are given; without meaning here."""
        return 0


def _reads(slots: int) -> Iterator[int]:
    """Lengths of cache that are read: doubling up to all slots."""
    doubled = (_SHORTEST_READ << power for power in itertools.count())
    yield from itertools.takewhile(lambda length: length < slots, doubled)
    yield slots


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One token's attention: the query heads that share keys are the rows of one product, and nothing is repeated.

    `attention_mask` (rows, 1, 1, read) holds distances; a layer with a window looks back less far.
    """
    rows, heads, _one, width = query.shape
    shared = key.shape[1]
    grouped = query.reshape(rows, shared, heads // shared, width).to(key.dtype)
    scores = (grouped @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    limit = float(sliding_window) if sliding_window else math.inf
    weights = scores.masked_fill(attention_mask >= limit, -math.inf).softmax(-1).to(value.dtype)
    return (weights @ value).to(query.dtype).reshape(rows, 1, heads, width), None


@contextlib.contextmanager
def written_in_steps(model: Any) -> Iterator[None]:
    """A model whose attention is that of `StaticStep` while the context lasts."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
