# SPDX-License-Identifier: Apache-2.0
"""The bfloat16 model to compare with: plain PyTorch, a static key/value cache, and a decode step as one CUDA graph.

q/k/v and gate/up are one product each, residuals are added by the product itself (`addmm`), norms and attention are
PyTorch's fused ones. It knows what the shapes of benchmarks.decoder_shapes need.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from nanoquant_edge.models import DecoderConfig
from nanoquant_edge.models.rotary import frequencies

__all__ = ["DenseDecoder"]


class DenseDecoder:
    """A decoder of random bfloat16 weights on the current GPU, for one batch.

    Args:
        config: sizes.
        batch: sequences.
        capacity: tokens of each that the cache holds.
    """

    def __init__(self, config: DecoderConfig, batch: int, capacity: int) -> None:
        self.config, self.batch, self.capacity = config, batch, capacity
        self.device, self.dtype = torch.device("cuda"), torch.bfloat16
        hidden, feed = config.hidden_size, config.intermediate_size
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        width = sum(self.heads) * config.head_dim
        self.blocks = [
            {
                "qkv": self._random(width, hidden),
                "out": self._random(hidden, config.num_heads * config.head_dim),
                "gate_up": self._random(2 * feed, hidden),
                "down": self._random(hidden, feed),
            }
            for _ in range(config.num_layers)
        ]
        self.norm = torch.ones(hidden, dtype=self.dtype, device=self.device)
        self.head_norm = torch.ones(config.head_dim, dtype=self.dtype, device=self.device)
        self.embedding = self._random(config.vocab_size, hidden)
        self.head = self.embedding if config.tied else self._random(config.vocab_size, hidden)
        sizes = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self.cache = torch.zeros(sizes, dtype=self.dtype, device=self.device)
        assert config.rotary is not None
        angles = torch.arange(capacity)[:, None] * torch.from_numpy(frequencies(config.rotary, config.head_dim))
        self.cosine, self.sine = (f(angles).to(self.device, self.dtype) for f in (torch.cos, torch.sin))
        self.slots = torch.arange(capacity, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros((batch, 1), dtype=torch.int64, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def _random(self, rows: int, columns: int) -> torch.Tensor:
        made = torch.empty((rows, columns), dtype=self.dtype, device=self.device)
        return made.normal_(0.0, columns**-0.5)

    @torch.inference_mode()
    def start(self, ids: np.ndarray) -> np.ndarray:
        """Read prompts, int64 (batch, tokens), and choose the first new tokens, int64 (batch,)."""
        given = torch.from_numpy(ids).to(self.device)
        places = torch.arange(ids.shape[1], device=self.device)
        self.position.fill_(ids.shape[1])
        self.tokens.copy_(self._forward(given, places, prompt=True))
        return self.tokens[:, 0].cpu().numpy()

    @torch.inference_mode()
    def extend(self, count: int) -> None:
        """Write `count` more tokens of each sequence, and wait for them."""
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        for _ in range(count):
            self._graph.replay()
        torch.cuda.synchronize()

    def rewind(self, length: int) -> None:
        """Go on from the first `length` tokens."""
        self.position.fill_(length)

    def _step(self) -> None:
        self.tokens.copy_(self._forward(self.tokens, self.position, prompt=False))
        self.position.add_(1)

    def _capture(self) -> None:
        saved = self.tokens.clone(), self.position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.tokens.copy_(saved[0])
        self.position.copy_(saved[1])
        self._graph = graph

    def _forward(self, ids: torch.Tensor, places: torch.Tensor, *, prompt: bool) -> torch.Tensor:
        """Likeliest token behind the last of `ids`, (batch, 1)."""
        config = self.config
        batch, tokens = ids.shape
        x = F.embedding(ids, self.embedding).view(batch * tokens, -1)
        mask = None if prompt else (self.slots <= self.position)[None, None, None]
        for index, block in enumerate(self.blocks):
            normed = F.rms_norm(x, (x.shape[-1],), self.norm, config.norm_eps)
            heads = (normed @ block["qkv"].T).view(batch, tokens, -1, config.head_dim).transpose(1, 2)
            query, key, value = heads.split(self.heads, 1)
            if config.structure.head_norms:
                query, key = (F.rms_norm(t, (config.head_dim,), self.head_norm, config.norm_eps) for t in (query, key))
            query, key = self._rotated(query, places), self._rotated(key, places)
            keys, values = self.cache[index]
            keys.index_copy_(2, places, key)
            values.index_copy_(2, places, value)
            if prompt:
                keys, values = key, value
            attended = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, is_causal=prompt, enable_gqa=config.num_heads > config.num_kv_heads
            )
            x = torch.addmm(x, attended.transpose(1, 2).reshape(batch * tokens, -1), block["out"].T)
            normed = F.rms_norm(x, (x.shape[-1],), self.norm, config.norm_eps)
            gate, up = (normed @ block["gate_up"].T).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, block["down"].T)
        last = x.view(batch, tokens, -1)[:, -1]
        normed = F.rms_norm(last, (last.shape[-1],), self.norm, config.norm_eps)
        return (normed @ self.head.T).argmax(-1, keepdim=True)

    def _rotated(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        cosine, sine = self.cosine[places], self.sine[places]
        low, high = x.chunk(2, -1)
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)
