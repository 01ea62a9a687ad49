# SPDX-License-Identifier: Apache-2.0
"""Decoders of well-known shapes with random signs, made on the device: for measurements and tests.

Speed does not depend on the values, so a shape with random signs decodes as fast as the compressed model would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from nanoquant_edge.formats.checkpoint import words_for
from nanoquant_edge.models import DecoderConfig, RotaryConfig
from nanoquant_edge.models.rotary import frequencies
from nanoquant_edge.runtimes.torch.attention import HeadNorms
from nanoquant_edge.runtimes.torch.layers import TiledLayer
from nanoquant_edge.runtimes.torch.model import DecoderModel, compressed_layer, in_host_memory, resolve_device
from nanoquant_edge.runtimes.torch.passes import Workspace
from nanoquant_edge.runtimes.torch.supported import check_supported
from nanoquant_edge.runtimes.torch.tiles import make_tiles

__all__ = ["SHAPES", "SMALL", "Shape", "random_decoder", "random_layer"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder's configuration, and whether its query and key heads are normed, which no configuration says."""

    config: DecoderConfig
    head_norms: bool = False


def _llama(sizes: dict[str, int], *, tied: bool, theta: float) -> DecoderConfig:
    return DecoderConfig(
        family="llama", max_positions=4096, norm_eps=1e-6, rotary=RotaryConfig(theta=theta), tied=tied, **sizes
    )


def _sizes(vocabulary: int, hidden: int, feed_forward: int, layers: int, heads: tuple[int, int, int]) -> dict[str, int]:
    """Sizes by their names in `DecoderConfig`; `heads` are query heads, key heads and channels of a head."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_layers": layers,
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "head_dim": heads[2],
    }


#: For tests.
SMALL = Shape(_llama(_sizes(512, 192, 320, 3, (8, 2, 64)), tied=True, theta=1e4))
#: Sizes from the models' config.json.
SHAPES = {
    "qwen3-0.6b": Shape(_llama(_sizes(151936, 1024, 3072, 28, (16, 8, 128)), tied=True, theta=1e6), head_norms=True),
    "llama-3.2-1b": Shape(_llama(_sizes(128256, 2048, 8192, 16, (32, 8, 64)), tied=True, theta=5e5)),
    "qwen3-8b": Shape(_llama(_sizes(151936, 4096, 12288, 36, (32, 8, 128)), tied=False, theta=1e6), head_norms=True),
    "llama-2-70b": Shape(_llama(_sizes(32000, 8192, 28672, 80, (64, 8, 128)), tied=False, theta=1e4)),
}


def random_layer(
    out_features: int,
    in_features: int,
    *,
    rank: int,
    generator: torch.Generator,
    scale_dtype: torch.dtype = torch.float16,
    bias: bool = False,
) -> TiledLayer:
    """A layer of random signs and scales on the generator's device; entries of its weight are about 1 / sqrt(n)."""
    device = generator.device

    def tiles(rows: int, columns: int) -> torch.Tensor:
        shape = (rows, words_for(columns))
        words = torch.randint(-(2**31), 2**31, shape, generator=generator, device=device, dtype=torch.int32)
        return make_tiles(words, columns)

    def scale(length: int) -> torch.Tensor:
        spread = 0.5 + torch.rand(length, generator=generator, device=device)
        return (spread * (rank * in_features) ** -0.25).to(scale_dtype)

    noise = torch.randn(out_features, generator=generator, device=device) * 0.1
    return TiledLayer(
        in_features=in_features,
        rank=rank,
        out_features=out_features,
        v_tiles=tiles(rank, in_features),
        u_tiles=tiles(out_features, rank),
        scale_in=scale(in_features),
        scale_mid=None,
        scale_out=scale(out_features),
        bias=noise.to(scale_dtype) if bias else None,
    )


def random_decoder(
    shape: Shape,
    rank_of: Callable[[int, int], int],
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    host_embedding: bool = False,
) -> DecoderModel:
    """A decoder of random signs, scales, norms and tables.

    Args:
        shape: for example `SHAPES["qwen3-0.6b"]`.
        rank_of: (out_features, in_features) -> rank.
        device: where it is made.
        dtype: type of activations and tables.
        seed: of everything random.
        host_embedding: see `DecoderModel.from_checkpoint`.

    Raises:
        NqEdgeError: NQ-CUDA or NQ-NATIVE-MISSING when the device cannot be used.
    """
    config, target = shape.config, resolve_device(device)
    generator = torch.Generator(target).manual_seed(seed)

    def table(rows: int) -> torch.Tensor:
        made = torch.empty((rows, config.hidden_size), dtype=dtype, device=target)
        return made.normal_(0.0, config.hidden_size**-0.5, generator=generator)

    def norm(width: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(width, generator=generator, device=target)).to(dtype)

    linear_shapes = config.linear_shapes()

    def layer(name: str) -> TiledLayer:
        rows, columns = linear_shapes[name]
        return random_layer(rows, columns, rank=rank_of(rows, columns), generator=generator, bias=config.has_bias(name))

    workspace = Workspace(target)
    width, eps = config.head_dim, config.norm_eps
    blocks = tuple(
        compressed_layer(
            config,
            workspace,
            layer=layer,
            input_norm=norm(config.hidden_size),
            post_norm=norm(config.hidden_size),
            head_norms=HeadNorms(norm(width).float(), norm(width).float(), eps) if shape.head_norms else None,
        )
        for _ in range(config.num_layers)
    )
    embedding = table(config.vocab_size)
    return DecoderModel(
        config=config,
        dtype=dtype,
        device=target,
        embedding=in_host_memory(embedding, config) if host_embedding else embedding,
        head=embedding if config.tied else table(config.vocab_size),
        final_norm=norm(config.hidden_size),
        layers=blocks,
        frequencies=torch.from_numpy(frequencies(check_supported(config), config.head_dim)).to(target),
        kernel="nanoquant" if target.type == "cuda" else "portable",
    )
