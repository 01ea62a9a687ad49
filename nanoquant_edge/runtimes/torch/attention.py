# SPDX-License-Identifier: Apache-2.0
"""Attention over a static key/value cache: rotary embedding, append, and one token's attention.

On a GPU each is one launch of the library (nq_cuda_attention.h); elsewhere, and as tests' reference, plain PyTorch.
The rotation pairs channel i with i + head_dim / 2 (RoFormer section 3.4.2 in the order that Hugging Face stores).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..cuda import binding
from .layers import C_TYPES

__all__ = ["Attention", "AttentionShape", "HeadNorms"]


@dataclass(frozen=True)
class HeadNorms:
    """RMS norm of each query and key head before the rotation (Qwen3): float32 weights (head_dim,) and epsilon."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a model's attention and of its cache: `capacity` tokens fit each of the `batch` sequences."""

    batch: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int


class Attention:
    """Attention of all layers of one model for one batch: the cache, and scratch memory shared by the layers.

    Args:
        shape: sizes.
        frequencies: float32 (head_dim / 2,), radians a position.
        dtype: float16 or bfloat16, of activations and cache.
        device: where everything lives.

    Attributes:
        cache: `dtype` (layers, 2, batch, kv_heads, capacity, head_dim), keys then values.
        positions: int64 (batch,), tokens in the cache; `decode` and `append` read it, the caller advances it.
    """

    def __init__(
        self, shape: AttentionShape, *, frequencies: torch.Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.batch, self.heads, self.kv_heads, self.head_dim = shape.batch, shape.heads, shape.kv_heads, shape.head_dim
        self.capacity, self.scale = shape.capacity, shape.head_dim**-0.5
        self.frequencies = frequencies.to(device)
        sizes = (shape.layers, 2, shape.batch, shape.kv_heads, shape.capacity, shape.head_dim)
        self.cache = torch.zeros(sizes, dtype=dtype, device=device)
        self.positions = torch.zeros(shape.batch, dtype=torch.int64, device=device)
        self.offsets = (0, self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim)
        self._described = binding.CAttention(
            type=C_TYPES[dtype],
            sequences=shape.batch,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_tokens=1,
            cache=binding.CCache(bits=16, page_tokens=shape.capacity, pages=shape.batch),
            positions=self.positions.data_ptr(),
            frequencies=self.frequencies.data_ptr(),
            scale=self.scale,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            size = binding.library().nq_cuda_attend_workspace_bytes(self._described)
            if not size:
                binding.check(binding.Status.NO_KERNEL, f"attention with heads of {shape.head_dim} channels")
            self._scratch = torch.zeros(size, dtype=torch.uint8, device=device)

    def decode(self, layer: int, qkv: torch.Tensor, *, out: torch.Tensor, norms: HeadNorms | None = None) -> None:
        """Append one token a sequence and attend to all tokens so far.

        Args:
            layer: whose cache.
            qkv: (batch, (heads + 2 kv_heads) head_dim), as the projections leave it.
            out: (batch, heads head_dim), written.
            norms: head norms, if the model has them.
        """
        if qkv.is_cuda:
            self._describe(layer, qkv, out, 1, norms)
            stream = torch.cuda.current_stream().cuda_stream
            status = binding.library().nq_cuda_attend(self._described, stream)
            if status:
                binding.check(status, "attention")
            return
        queries = torch.empty_like(out)
        self.append(layer, qkv, queries=queries, tokens=1, norms=norms)
        keys, values = self.cache[layer].float()
        slots = torch.arange(self.capacity, device=qkv.device)
        mask = (slots <= self.positions[:, None])[:, None, None]
        shaped = queries.view(self.batch, self.heads, 1, self.head_dim).float()
        result = F.scaled_dot_product_attention(shaped, keys, values, attn_mask=mask, enable_gqa=True)
        out.copy_(result.reshape(out.shape))

    def append(
        self, layer: int, qkv: torch.Tensor, *, queries: torch.Tensor, tokens: int, norms: HeadNorms | None = None
    ) -> None:
        """Write the rotated keys and the values of `tokens` tokens a sequence into the cache.

        Args:
            layer: whose cache.
            qkv: (batch * tokens, (heads + 2 kv_heads) head_dim), sequence by sequence.
            queries: (batch * tokens, heads head_dim), the rotated queries are written here.
            tokens: new tokens of each sequence.
            norms: head norms, if the model has them.
        """
        if qkv.is_cuda:
            self._describe(layer, qkv, queries, tokens, norms)
            stream = torch.cuda.current_stream().cuda_stream
            binding.check(binding.library().nq_cuda_rotary_append(self._described, stream), "rotary embedding")
            return
        positions = self.positions[:, None] + torch.arange(tokens, device=qkv.device)
        heads = qkv.view(self.batch, tokens, -1, self.head_dim)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads), 2)
        query = self._rotate(query, positions, None if norms is None else norms.query, norms)
        key = self._rotate(key, positions, None if norms is None else norms.key, norms)
        queries.copy_(query.reshape(queries.shape))
        index = positions[:, None, :, None].expand(-1, self.kv_heads, -1, self.head_dim)
        self.cache[layer, 0].scatter_(2, index, key.transpose(1, 2))
        self.cache[layer, 1].scatter_(2, index, value.transpose(1, 2))

    def _rotate(
        self, x: torch.Tensor, positions: torch.Tensor, weight: torch.Tensor | None, norms: HeadNorms | None
    ) -> torch.Tensor:
        wide = x.float()
        if weight is not None and norms is not None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norms.eps) * weight.float()
        angles = positions.float()[..., None, None] * self.frequencies
        low, high = wide.chunk(2, -1)
        cosine, sine = angles.cos(), angles.sin()
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1).to(x.dtype)

    def _describe(self, layer: int, qkv: torch.Tensor, out: torch.Tensor, tokens: int, norms: HeadNorms | None) -> None:
        described, size = self._described, qkv.element_size()
        base, keys = qkv.data_ptr(), self.cache[layer, 0]
        described.max_tokens = tokens
        described.q, described.k, described.v = (base + offset * size for offset in self.offsets)
        described.q_stride = described.k_stride = described.v_stride = qkv.stride(0)
        described.cache.keys = keys.data_ptr()
        described.cache.values = keys.data_ptr() + keys.numel() * size
        described.q_norm = None if norms is None else norms.query.data_ptr()
        described.k_norm = None if norms is None else norms.key.data_ptr()
        described.norm_eps = 0.0 if norms is None else norms.eps
        described.y, described.y_stride = out.data_ptr(), out.stride(0)
        described.workspace, described.workspace_bytes = self._scratch.data_ptr(), self._scratch.numel()
