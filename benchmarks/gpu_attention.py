# SPDX-License-Identifier: Apache-2.0
"""Attention on the GPU: ours against PyTorch's flash attention, prompts and single tokens, in one run.

    python -m benchmarks.gpu_attention [--models llama-3.2-1b] [--prompts 2048] [--contexts 8192] [--append]

Caches of several layers take turns, so that a single token's keys and values come from memory. The calls form one CUDA
graph, whose replays are timed. The floor beside each time is what has to be moved at copy bandwidth or multiplied at
790 TFLOP/s, whichever takes longer; masked products are not counted. PyTorch has no window: it attends to everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.figures import append_rows, figures_option, listed
from benchmarks.gpu_kernels import ROTATED_BYTES
from benchmarks.gpu_timing import copy_gbs, graph_us
from nanoquant_edge.runtimes.cuda import binding

#: dense bfloat16 products of an H200, in FLOP/s, as measured with cuBLAS
PEAK = 790e12
PAGE_TOKENS = 128


@dataclass(frozen=True)
class Shape:
    """Attention of a model's layer; `window` 0 sees everything."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0


SHAPES = {
    "llama-3.2-1b": Shape(32, 8, 64),
    "qwen3-0.6b": Shape(16, 8, 128),
    "gemma-3-270m": Shape(4, 1, 256, 512),
}


def _described(shape: Shape, qkv: torch.Tensor, out: torch.Tensor, *, bits: int, capacity: int) -> binding.CAttention:
    """Everything of one sequence's layer but what it holds and how many tokens are new."""
    width, size = shape.head_dim, qkv.element_size()
    k = qkv.data_ptr() + shape.heads * width * size
    return binding.CAttention(
        type=binding.CType.BFLOAT16, sequences=1, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=width,
        window=shape.window, scale=width**-0.5, q=qkv.data_ptr(), k=k, v=k + shape.kv_heads * width * size,
        y=out.data_ptr(), q_stride=qkv.stride(0), k_stride=qkv.stride(0), v_stride=qkv.stride(0),
        y_stride=out.stride(0),
        cache=binding.CCache(
            bits=bits, page_tokens=PAGE_TOKENS, pages=-(-capacity // PAGE_TOKENS),
            table_stride=-(-capacity // PAGE_TOKENS),
        ),
    )  # fmt: skip


class Layers:
    """Paged caches of several layers for one sequence of a shape, and calls over them.

    Args:
        shape: sizes.
        held: tokens in the cache.
        new: tokens of each call.
        bits: of a cached value.
        count: layers.
    """

    def __init__(self, shape: Shape, *, held: int, new: int, bits: int = 16, count: int = 1) -> None:
        capacity = held + new
        pages = -(-capacity // PAGE_TOKENS)
        generator = torch.Generator("cuda").manual_seed(0)

        def made(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, generator=generator, device="cuda").bfloat16()

        qkv = made(new, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
        out = torch.empty(new, shape.heads * shape.head_dim, dtype=torch.bfloat16, device="cuda")
        frequencies = 1e4 ** -(torch.arange(0, shape.head_dim, 2, device="cuda") / shape.head_dim)
        self._kept: list[torch.Tensor] = [
            qkv, out, frequencies, torch.tensor([held], device="cuda"),
            torch.randperm(pages, generator=generator, device="cuda").int(),
        ]  # fmt: skip
        self.calls: list[binding.CAttention] = []
        scratch = torch.empty(0)
        for _ in range(count):
            call = _described(shape, qkv, out, bits=bits, capacity=capacity)
            call.max_tokens = new
            call.frequencies, call.positions, call.cache.page_table = (x.data_ptr() for x in self._kept[2:5])
            for name in ("key", "value"):
                tokens = (pages, shape.kv_heads, PAGE_TOKENS)
                values = made(*tokens, shape.head_dim)
                if bits == 8:
                    scales = (values.abs().amax(-1) / 100).half()
                    setattr(call.cache, f"{name}_scales", scales.data_ptr())
                    values = (values * 30).clamp(-127, 127).to(torch.int8)
                    self._kept.append(scales)
                setattr(call.cache, f"{name}s", values.data_ptr())
                self._kept.append(values)
            if not scratch.numel():
                size = binding.library().nq_cuda_attend_workspace_bytes(call)
                scratch = torch.zeros(size, dtype=torch.uint8, device="cuda")
                self._kept.append(scratch)
            call.workspace, call.workspace_bytes = scratch.data_ptr(), scratch.numel()
            self.calls.append(call)

    def us(self, function: str) -> float:
        """Microseconds of nq_cuda_`function`, the layers taking turns."""
        run = getattr(binding.library(), f"nq_cuda_{function}")

        def one(call: binding.CAttention) -> None:
            binding.check(run(call, torch.cuda.current_stream().cuda_stream), function)

        return graph_us([lambda call=call: one(call) for call in self.calls])[0]  # type: ignore[misc]


def flash_us(shape: Shape, *, tokens: int, context: int, count: int = 1) -> float:
    """PyTorch's flash attention over a contiguous cache."""

    def made(heads: int, length: int) -> torch.Tensor:
        return torch.randn(1, heads, length, shape.head_dim, device="cuda", dtype=torch.bfloat16)

    query = made(shape.heads, tokens)
    caches = [(made(shape.kv_heads, context), made(shape.kv_heads, context)) for _ in range(count)]

    def one(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=tokens > 1, enable_gqa=True)

    calls: list[Callable[[], object]] = [lambda cache=cache: one(*cache) for cache in caches]  # type: ignore[misc]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return graph_us(calls)[0]


def prompt_row(name: str, tokens: int, copy: float) -> dict[str, Any]:
    """A prompt of so many tokens into an empty cache: appended, then attended to."""
    shape = SHAPES[name]
    layers = Layers(shape, held=0, new=tokens, count=4)
    seen = sum(min(i + 1, shape.window or i + 1) for i in range(tokens))
    moved = 2 * 2 * tokens * (shape.heads + shape.kv_heads) * shape.head_dim
    floor = max(4 * shape.heads * shape.head_dim * seen / PEAK, moved / copy / 1e9) * 1e6
    ours, flash = layers.us("attend_many"), flash_us(shape, tokens=tokens, context=tokens, count=4)
    return {
        "model": name, "what": "prompt", "tokens": tokens, "context": tokens, "bits": 16, "us": round(ours, 2),
        "append_us": round(layers.us("rotary_append"), 2), "flash_us": round(flash, 2),
        "over_flash": round(ours / flash, 3), "floor_us": round(floor, 2),
        "tflops": round(4 * shape.heads * shape.head_dim * seen / ours / 1e6, 1),
    }  # fmt: skip


def token_row(name: str, context: int, bits: int, copy: float) -> dict[str, Any]:
    """One token more at a context, rotation and append included (PyTorch: attention alone)."""
    shape = SHAPES[name]
    seen = min(context, shape.window or context)
    each = 2 * shape.kv_heads * (shape.head_dim * bits // 8 + (2 if bits == 8 else 0))
    count = min(64, max(4, int(ROTATED_BYTES / (seen * each)) + 1))
    ours = Layers(shape, held=context - 1, new=1, bits=bits, count=count).us("attend")
    flash = flash_us(shape, tokens=1, context=seen, count=count)
    floor = seen * each / copy / 1e3
    return {
        "model": name, "what": "token", "tokens": 1, "context": context, "bits": bits, "us": round(ours, 2),
        "flash_us": round(flash, 2), "over_flash": round(ours / flash, 3), "floor_us": round(floor, 2),
        "of_copy": round(floor / ours, 3),
    }  # fmt: skip


@click.command()
@click.option("--models", default=",".join(SHAPES), callback=listed(str), show_default=True)
@click.option("--prompts", default="128,512,2048", callback=listed(int), show_default=True)
@click.option("--contexts", default="128,2048,8192", callback=listed(int), show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to gpu_attention.json.")
@figures_option
def main(
    models: tuple[str, ...], prompts: tuple[int, ...], contexts: tuple[int, ...], append: bool, folder: Path
) -> None:
    """Measure and print; see the module's text."""
    copy = copy_gbs()
    click.echo(f"copy bandwidth {copy:.0f} GB/s")
    rows = []
    for name in models:
        for tokens in prompts:
            rows.append(prompt_row(name, tokens, copy))
            click.echo(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
        for context in contexts:
            for bits in (16, 8):
                rows.append(token_row(name, context, bits, copy))
                click.echo(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if append:
        append_rows("gpu_attention", rows, repetitions=15, folder=folder)


if __name__ == "__main__":
    main()
