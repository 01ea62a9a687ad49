# SPDX-License-Identifier: Apache-2.0
"""The attention kernels on a GPU against float64, with poisoned memory around what they may read and write."""

from __future__ import annotations

import math

import pytest
import torch

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.torch.attention import Attention, AttentionShape, HeadNorms

pytestmark = pytest.mark.gpu
THETA = 1e4


def make(
    heads: int, kv_heads: int, dim: int, lengths: list[int], capacity: int, dtype: torch.dtype, seed: int = 0
) -> Attention:
    """A cache whose first `lengths` tokens are random and whose rest is NaN."""
    frequencies = THETA ** -(torch.arange(0, dim, 2) / dim)
    shape = AttentionShape(
        batch=len(lengths), layers=2, heads=heads, kv_heads=kv_heads, head_dim=dim, capacity=capacity
    )
    attention = Attention(shape, frequencies=frequencies.float(), dtype=dtype, device=torch.device("cuda"))
    generator = torch.Generator("cuda").manual_seed(seed)
    attention.cache.normal_(generator=generator)
    for sequence, length in enumerate(lengths):
        attention.cache[:, :, sequence, :, length:] = torch.nan
    attention.positions.copy_(torch.tensor(lengths))
    return attention


def rotated(x: torch.Tensor, length: int, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """float64 (heads, dim): normed and rotated."""
    x = x.double()
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    half = x.shape[-1] // 2
    frequencies = THETA ** -(torch.arange(0, 2 * half, 2) / (2 * half))
    angles = (torch.tensor(float(length)) * frequencies.float()).double().cuda()
    low, high = x[:, :half], x[:, half:]
    return torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), -1)


def reference(attention: Attention, cache: torch.Tensor, qkv: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
    """float64 (batch, heads, dim) from the cache as it was before; `cache` is one layer's."""
    heads, kv_heads, dim = attention.heads, attention.kv_heads, attention.head_dim
    results = []
    for sequence, row in enumerate(qkv.view(attention.batch, -1, dim)):
        length = int(attention.positions[sequence])
        eps = norms.eps if norms else 0.0
        query = rotated(row[:heads], length, norms.query if norms else None, eps)
        key = rotated(row[heads : heads + kv_heads], length, norms.key if norms else None, eps).to(qkv.dtype).double()
        keys = torch.cat((cache[0, sequence, :, :length].double(), key[:, None]), 1)
        values = torch.cat((cache[1, sequence, :, :length].double(), row[heads + kv_heads :, None].double()), 1)
        keys, values = (x.repeat_interleave(heads // kv_heads, 0) for x in (keys, values))
        scores = (query[:, None] @ keys.transpose(1, 2)) / math.sqrt(dim)
        results.append((scores.softmax(-1) @ values)[:, 0])
    return torch.stack(results)


def row_errors(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().flatten(1), expected.flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "lengths", "capacity"),
    [
        (16, 8, 128, [0], 64),
        (16, 8, 128, [63, 64, 65, 1, 200], 256),
        (9, 3, 64, [130], 4096),
        (32, 8, 64, [4095, 17], 4096),
        (64, 8, 128, [1151], 1152),
        (64, 8, 128, [1151, 0, 5, 700] * 4, 1152),
        (8, 4, 256, [31, 32, 33, 999], 1000),
        (4, 4, 64, [100], 333),
        (24, 1, 128, [777, 12], 1024),
    ],
)
def test_decode_against_float64(
    heads: int, kv_heads: int, dim: int, lengths: list[int], capacity: int, norms: bool, dtype: torch.dtype
) -> None:
    attention = make(heads, kv_heads, dim, lengths, capacity, dtype)
    generator = torch.Generator("cuda").manual_seed(1)
    qkv = torch.randn(len(lengths), (heads + 2 * kv_heads) * dim, generator=generator, device="cuda").to(dtype)
    weights = 1 + 0.2 * torch.randn(2, dim, generator=generator, device="cuda")
    head_norms = HeadNorms(weights[0].clone(), weights[1].clone(), 1e-6) if norms else None
    before = attention.cache.clone()
    expected = reference(attention, before[1], qkv, head_norms)
    out = torch.full((len(lengths), heads * dim), torch.nan, dtype=dtype, device="cuda")
    attention.decode(1, qkv, out=out, norms=head_norms)
    assert row_errors(out, expected) <= (1e-3 if dtype == torch.float16 else 3e-3)
    for sequence, length in enumerate(lengths):
        new = attention.cache[1, :, sequence, :, length].clone()
        key = rotated(
            qkv[sequence].view(-1, dim)[heads : heads + kv_heads], length, weights[1] if norms else None, 1e-6
        )
        assert row_errors(new[0], key) <= (1e-3 if dtype == torch.float16 else 3e-3)
        assert torch.equal(new[1], qkv[sequence].view(-1, dim)[heads + kv_heads :])
        attention.cache[1, :, sequence, :, length] = before[1, :, sequence, :, length]
    assert torch.equal(attention.cache.view(torch.int16), before.view(torch.int16)), "wrote elsewhere in the cache"
    again = torch.full_like(out, torch.nan)
    attention.decode(1, qkv, out=again, norms=head_norms)
    assert torch.equal(again, out), "not the same twice"


@pytest.mark.parametrize(("dim", "norms"), [(64, False), (128, True), (256, True)])
def test_append_equals_the_decode_steps(dim: int, norms: bool) -> None:
    heads, kv_heads, tokens = 6, 2, 9
    one = make(heads, kv_heads, dim, [3, 3], 32, torch.bfloat16)
    many = make(heads, kv_heads, dim, [3, 3], 32, torch.bfloat16)
    weights = torch.rand(2, dim, device="cuda")
    head_norms = HeadNorms(weights[0].clone(), weights[1].clone(), 1e-5) if norms else None
    qkv = torch.randn(2, tokens, (heads + 2 * kv_heads) * dim, device="cuda").to(torch.bfloat16)
    queries = torch.full((2 * tokens, heads * dim), torch.nan, dtype=torch.bfloat16, device="cuda")
    many.append(0, qkv.view(2 * tokens, -1), queries=queries, tokens=tokens, norms=head_norms)
    out = torch.empty((2, heads * dim), dtype=torch.bfloat16, device="cuda")
    for token in range(tokens):
        one.decode(0, qkv[:, token].contiguous(), out=out, norms=head_norms)
        one.positions.add_(1)
    assert torch.equal(many.cache.view(torch.int16), one.cache.view(torch.int16))
    for row in (0, tokens - 1, tokens, 2 * tokens - 1):
        shaped = qkv.view(2 * tokens, -1, dim)[row, :heads]
        expected = rotated(shaped, 3 + row % tokens, weights[0] if norms else None, 1e-5)
        assert row_errors(queries[row].view(heads, dim), expected) <= 4e-3


def test_a_place_outside_the_cache_is_left_out() -> None:
    attention = make(4, 2, 64, [16, 5], 16, torch.float16)
    before = attention.cache.clone()
    qkv = torch.randn(2, 8 * 64, device="cuda").half()
    out = torch.zeros(2, 4 * 64, device="cuda").half()
    attention.decode(0, qkv, out=out)
    assert (out[0] == 0).all()
    assert torch.isfinite(out[1]).all() and (out[1] != 0).any()
    attention.cache[0, :, 1, :, 5] = before[0, :, 1, :, 5]
    assert torch.equal(attention.cache.view(torch.int16), before.view(torch.int16))


def test_head_sizes_without_a_kernel_are_refused() -> None:
    with pytest.raises(NqEdgeError, match="heads of 72 channels") as caught:
        make(4, 2, 72, [0], 16, torch.float16)
    assert caught.value.code == "NQ-CUDA"
