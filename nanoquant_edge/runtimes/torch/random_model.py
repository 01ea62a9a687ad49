# SPDX-License-Identifier: Apache-2.0
"""Decoders of well-known shapes with random bits, made on the device: for measurements and tests.

Speed does not depend on the values, so a shape with random signs decodes as fast as the compressed model would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ...models import DecoderConfig, RotaryConfig
from ...models.rotary import frequencies
from .attention import HeadNorms
from .layers import TiledLayer
from .model import DecoderModel, compressed_layer, in_host_memory, resolve_device
from .passes import Workspace
from .supported import check_supported

__all__ = ["SHAPES", "random_model"]


def _shape(
    vocab: int,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    tied: bool,
    theta: float,
) -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=4096,
        norm_eps=1e-6,
        rotary=RotaryConfig(theta=theta),
        tied=tied,
    )


#: name -> (shape, whether query and key heads are normed); sizes from the models' config.json
SHAPES: dict[str, tuple[DecoderConfig, bool]] = {
    "qwen3-0.6b": (_shape(151936, 1024, 3072, 28, 16, 8, 128, tied=True, theta=1e6), True),
    "llama-3.2-1b": (_shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True, theta=5e5), False),
    "qwen3-8b": (_shape(151936, 4096, 12288, 36, 32, 8, 128, tied=False, theta=1e6), True),
    "llama-2-70b": (_shape(32000, 8192, 28672, 80, 64, 8, 128, tied=False, theta=1e4), False),
}


def random_model(
    config: DecoderConfig,
    rank_of: Callable[[int, int], int],
    *,
    head_norms: bool = False,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    layers: int | None = None,
    host_embedding: bool = False,
) -> DecoderModel:
    """A decoder of random signs, scales, norms and tables.

    Args:
        config: the shape, for example `SHAPES["qwen3-0.6b"][0]`.
        rank_of: (out_features, in_features) -> rank.
        head_norms: norm query and key heads.
        device: where it is made.
        dtype: type of activations and tables.
        seed: of everything random.
        layers: number of blocks instead of the shape's.
        host_embedding: see `DecoderModel.from_checkpoint`.

    Raises:
        NqEdgeError: NQ-CUDA or NQ-NATIVE-MISSING when the device cannot be used.
    """
    place = resolve_device(device)
    if layers is not None:
        config = dataclasses.replace(config, num_layers=layers)
    generator = torch.Generator(place).manual_seed(seed)

    def table(rows: int) -> torch.Tensor:
        made = torch.empty((rows, config.hidden_size), dtype=dtype, device=place)
        return made.normal_(0.0, config.hidden_size**-0.5, generator=generator)

    def norm(width: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(width, generator=generator, device=place)).to(dtype)

    shapes = config.linear_shapes()

    def layer(name: str) -> TiledLayer:
        out_features, in_features = shapes[name]
        rank = rank_of(out_features, in_features)
        return TiledLayer.random(out_features, in_features, rank, generator=generator, bias=config.has_bias(name))

    workspace = Workspace(place)
    width, eps = config.head_dim, config.norm_eps
    blocks = tuple(
        compressed_layer(
            config,
            workspace,
            layer,
            input_norm=norm(config.hidden_size),
            post_norm=norm(config.hidden_size),
            head_norms=HeadNorms(norm(width), norm(width), eps) if head_norms else None,
        )
        for _ in range(config.num_layers)
    )
    embedding = table(config.vocab_size)
    return DecoderModel(
        config=config,
        dtype=dtype,
        device=place,
        embedding=in_host_memory(embedding, config) if host_embedding else embedding,
        head=embedding if config.tied else table(config.vocab_size),
        final_norm=norm(config.hidden_size),
        layers=blocks,
        frequencies=torch.from_numpy(frequencies(check_supported(config), config.head_dim)).to(place),
        kernel="nanoquant" if place.type == "cuda" else "portable",
    )
