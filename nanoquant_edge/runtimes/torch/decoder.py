# SPDX-License-Identifier: Apache-2.0
"""The forward passes: a prompt through all layers, and one decode step that may be a captured CUDA graph.

A step reads its tokens and positions from device memory and writes the next ones back, so the same graph serves every
step and no step waits for the host.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..cuda import binding
from .attention import Attention
from .model import DecoderModel

__all__ = ["DecodeStep", "embed", "logits_of", "prefill"]


def embed(model: DecoderModel, tokens: torch.Tensor, out: torch.Tensor) -> None:
    """Rows of the embedding table, which may lie in pinned host memory: int64 (rows,) -> (rows, hidden_size)."""
    if not out.is_cuda:
        torch.index_select(model.embedding, 0, tokens, out=out)
        return
    table = model.embedding
    status = binding.library().nq_cuda_gather_rows(
        table.data_ptr(),
        table.shape[0],
        table.shape[1] * table.element_size(),
        tokens.data_ptr(),
        tokens.numel(),
        out.data_ptr(),
        torch.cuda.current_stream().cuda_stream,
    )
    binding.check(status, "embedding")


def logits_of(model: DecoderModel, hidden: torch.Tensor) -> torch.Tensor:
    """Final norm and output head: (rows, hidden_size) -> float32 (rows, vocab_size)."""
    normed = F.rms_norm(hidden, (hidden.shape[-1],), model.final_norm, model.config.norm_eps)
    if normed.is_cuda:
        # float32 out of 16-bit operands: rounding the logits to 16 bits would be the largest error of the model.
        return torch.mm(normed, model.head.T, out_dtype=torch.float32)
    return normed.float() @ model.head.float().T


def prefill(model: DecoderModel, attention: Attention, *, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Append tokens to the cache.

    Args:
        model: the decoder.
        attention: the cache; its `positions` must all be `start`, and stay so.
        ids: int64 (batch, tokens) on the device.
        start: tokens of each sequence that are in the cache already.

    Returns:
        The last block's output (batch, tokens, hidden_size).
    """
    batch, tokens = ids.shape
    config, end = model.config, start + tokens
    rows, width = batch * tokens, config.num_heads * config.head_dim
    x = torch.empty((rows, config.hidden_size), dtype=model.dtype, device=model.device)
    embed(model, ids.reshape(-1), x)
    qkv = x.new_empty((rows, model.layers[0].qkv.width))
    attended = x.new_empty((rows, width))
    gate_up = x.new_empty((rows, model.layers[0].gate_up.width))
    mask = None
    if start:
        mask = torch.ones((tokens, end), dtype=torch.bool, device=x.device).tril(start)
    for index, layer in enumerate(model.layers):
        layer.qkv(x, qkv)
        attention.append(index, qkv, queries=attended, tokens=tokens, norms=layer.head_norms)
        queries = attended.view(batch, tokens, config.num_heads, config.head_dim).transpose(1, 2)
        keys, values = attention.cache[index, :, :, :, :end]
        result = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=config.num_heads > config.num_kv_heads,
        )
        layer.output(result.transpose(1, 2).reshape(rows, width), x, residual=x)
        layer.gate_up(x, gate_up)
        layer.down(gate_up, x, residual=x)
    return x.view(batch, tokens, -1)


class DecodeStep:
    """One token of every sequence: embedding, layers, head, greedy choice, write-back.

    Args:
        model: the decoder.
        attention: the cache and positions of one batch.
        graph: capture the step into a CUDA graph at its first use; ignored on the CPU.

    Attributes:
        tokens: int64 (batch,), what the next step reads and each step overwrites with its greedy choice.
        chosen: int64 (batch, capacity), the greedy choice made at each position.
        logits: float32 (batch, vocab_size) of the last step; valid until the next.
    """

    def __init__(self, model: DecoderModel, attention: Attention, *, graph: bool = True) -> None:
        self._model, self._attention = model, attention
        batch, config, device = attention.batch, model.config, model.device
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        # Tokens by place; what a step chooses at place p is the token of place p + 1.
        self._history = torch.zeros((batch, attention.capacity + 1), dtype=torch.int64, device=device)
        self.chosen = self._history[:, 1:]
        self.logits = torch.empty(0)

        def buffer(width: int) -> torch.Tensor:
            return torch.empty((batch, width), dtype=model.dtype, device=device)

        self._x, self._qkv = buffer(config.hidden_size), buffer(model.layers[0].qkv.width)
        self._attended = buffer(config.num_heads * config.head_dim)
        self._gate_up = buffer(model.layers[0].gate_up.width)
        vocabulary = model.head.shape[0]
        slots = binding.library().nq_cuda_choice_workspace_bytes(batch, vocabulary) if device.type == "cuda" else 0
        self._slots = torch.zeros(slots, dtype=torch.uint8, device=device)
        self._use_graph = graph and device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run one step; every sequence must have room in the cache."""
        if not self._use_graph:
            self._run()
            return
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()

    def _run(self) -> None:
        model, attention, x = self._model, self._attention, self._x
        embed(model, self.tokens, x)
        for index, layer in enumerate(model.layers):
            layer.qkv(x, self._qkv)
            attention.decode(index, self._qkv, out=self._attended, norms=layer.head_norms)
            layer.output(self._attended, x, residual=x)
            layer.gate_up(x, self._gate_up)
            layer.down(self._gate_up, x, residual=x)
        self.logits = logits_of(model, x)
        self._choose()

    def _choose(self) -> None:
        """The greedy choice: into `tokens` and `chosen`, and one place on."""
        positions = self._attention.positions
        if not self.tokens.is_cuda:
            torch.argmax(self.logits, -1, out=self.tokens)
            self.chosen.scatter_(1, positions[:, None], self.tokens[:, None])
            positions.add_(1)
            return
        choice = binding.CChoice(
            sequences=self.tokens.numel(),
            vocabulary=self.logits.shape[1],
            logits=self.logits.data_ptr(),
            logits_stride=self.logits.stride(0),
            tokens=self.tokens.data_ptr(),
            history=self._history.data_ptr(),
            capacity=self._history.shape[1],
            positions=positions.data_ptr(),
            workspace=self._slots.data_ptr(),
            workspace_bytes=self._slots.numel(),
        )
        status = binding.library().nq_cuda_choose(choice, torch.cuda.current_stream().cuda_stream)
        binding.check(status, "greedy choice")

    def _capture(self) -> None:
        # The trial run fills library caches and scratch memory; what it wrote at the current place of the cache is
        # written again by the first replay.
        saved = self.tokens.clone(), self._attention.positions.clone()
        side = torch.cuda.Stream(self._model.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize(self._model.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self.tokens.copy_(saved[0])
        self._attention.positions.copy_(saved[1])
        self._graph = graph
