# SPDX-License-Identifier: Apache-2.0
"""A Llama-shaped decoder as weights on a device: embedding, grouped projections, norms, head.

Query/key head norms (Qwen3) and projection biases (Qwen2) are there when the weights have them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...errors import NqEdgeError
from ...formats.checkpoint import Checkpoint
from ...models import DecoderConfig
from ...models.config_reader import read_config
from ...models.rotary import frequencies
from ..cuda.binding import Input
from .attention import HeadNorms
from .layers import TiledLayer, to_tensor
from .passes import LinearGroup, Workspace
from .supported import check_supported

__all__ = ["DecoderLayer", "DecoderModel", "Projection", "compressed_layer", "in_host_memory", "resolve_device"]


class Projection(Protocol):
    """One to four linear layers computed from the same rows; see `LinearGroup`."""

    width: int

    def __call__(self, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None) -> None:
        """Compute into `out`, adding `residual` (which may be `out`)."""
        ...


@dataclass(frozen=True)
class DecoderLayer:
    """One block.

    Attributes:
        qkv: input norm and the three projections, side by side.
        output: the attention's output projection.
        gate_up: post-attention norm and both gated projections, side by side.
        down: gate and product, then the projection back.
        head_norms: norms of query and key heads, if any.
    """

    qkv: Projection
    output: Projection
    gate_up: Projection
    down: Projection
    head_norms: HeadNorms | None = None


@dataclass(frozen=True)
class DecoderModel:
    """A whole decoder on one device.

    Attributes:
        config: sizes.
        dtype: type of activations, cache, embedding and head.
        device: where everything lives.
        embedding: (vocab_size, hidden_size); on a GPU's model perhaps in pinned host memory.
        head: the same tensor when tied.
        final_norm: (hidden_size,).
        layers: the blocks.
        frequencies: float32 (head_dim / 2,) of the rotary embedding.
        kernel: what computes the linear layers, see `Backend`.
    """

    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    embedding: torch.Tensor
    head: torch.Tensor
    final_norm: torch.Tensor
    layers: tuple[DecoderLayer, ...]
    frequencies: torch.Tensor
    kernel: str

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint | str | Path,
        *,
        device: str = "cuda",
        dtype: torch.dtype | None = None,
        host_embedding: bool = False,
    ) -> DecoderModel:
        """Load a NanoQuant checkpoint.

        Args:
            checkpoint: an opened checkpoint, or its folder.
            device: "cuda", "cuda:1", ..., or "cpu" for the slow reference.
            dtype: type of the activations; None takes bfloat16 where the GPU has it, else float16, and float32 on
                the CPU.
            host_embedding: keep an untied embedding table in pinned host memory, from which the GPU reads one row a
                token: saves its size on a small card.

        Raises:
            NqEdgeError: NQ-CKPT, NQ-ARCH or NQ-MODEL for the checkpoint, NQ-CUDA or NQ-NATIVE-MISSING for the device.
        """
        target = resolve_device(device)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        source, config = checkpoint, read_config(checkpoint.config)
        rotary = check_supported(config)
        dtype = _activation_type(target, dtype)

        def tensor(name: str) -> torch.Tensor:
            return to_tensor(source.tensor(name), target).to(dtype)

        def norms(attention: str) -> HeadNorms | None:
            if f"{attention}.q_norm.weight" not in source:
                return None
            query, key = (tensor(f"{attention}.{name}_norm.weight").float() for name in "qk")
            return HeadNorms(query, key, config.norm_eps)

        def tiled(prefix: str, name: str) -> TiledLayer:
            return TiledLayer.from_packed(source.layer(f"{prefix}.{name}"), target)

        workspace = Workspace(target)
        blocks = []
        for block in range(config.num_layers):
            prefix = f"model.layers.{block}"
            blocks.append(
                compressed_layer(
                    config,
                    workspace,
                    layer=functools.partial(tiled, prefix),
                    input_norm=tensor(f"{prefix}.input_layernorm.weight"),
                    post_norm=tensor(f"{prefix}.post_attention_layernorm.weight"),
                    head_norms=norms(f"{prefix}.self_attn"),
                )
            )
        embedding = tensor("model.embed_tokens.weight")
        head = embedding if config.tied else tensor("lm_head.weight")
        return cls(
            config=config,
            dtype=dtype,
            device=target,
            embedding=in_host_memory(embedding, config) if host_embedding else embedding,
            head=head,
            final_norm=tensor("model.norm.weight"),
            layers=tuple(blocks),
            frequencies=torch.from_numpy(frequencies(rotary, config.head_dim)).to(target),
            kernel="nanoquant" if target.type == "cuda" else "portable",
        )


def in_host_memory(table: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """An embedding table of a GPU's model, moved to pinned host memory.

    Raises:
        NqEdgeError: NQ-OPTION when the head is the same table, which must be on the GPU.
    """
    if config.tied:
        raise NqEdgeError("NQ-OPTION", "host_embedding needs a head of its own; this model's is the embedding table.")
    return table.cpu().pin_memory() if table.is_cuda else table


def compressed_layer(
    config: DecoderConfig,
    workspace: Workspace,
    *,
    layer: Callable[[str], TiledLayer],
    input_norm: torch.Tensor,
    post_norm: torch.Tensor,
    head_norms: HeadNorms | None,
) -> DecoderLayer:
    """A block of compressed layers.

    Args:
        config: sizes.
        workspace: scratch memory of the whole model.
        layer: gives the layer of a name inside the block, such as "mlp.up_proj".
        input_norm, post_norm: RMS norm weights (hidden_size,).
        head_norms: norms of query and key heads, if any.

    Raises:
        NqEdgeError: NQ-CUDA when sizes are not multiples of 8.
    """
    heads = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim)
    widths = (config.hidden_size, config.intermediate_size, *heads)
    if any(width % 8 for width in widths):
        # Gate and up, and the heads, must lie side by side at addresses that are multiples of 16 bytes.
        raise NqEdgeError("NQ-CUDA", f"widths {widths} are not multiples of 8, which the fused kernels need.")

    def group(names: tuple[str, ...], kind: Input, norm: torch.Tensor | None = None) -> LinearGroup:
        chosen = [layer(name) for name in names]
        return LinearGroup(
            chosen, workspace, input=kind, norm_weight=norm, norm_eps=config.norm_eps if norm is not None else 0.0
        )

    return DecoderLayer(
        qkv=group(tuple(f"self_attn.{name}_proj" for name in "qkv"), Input.RMS_NORM, input_norm),
        output=group(("self_attn.o_proj",), Input.PLAIN),
        gate_up=group(("mlp.gate_proj", "mlp.up_proj"), Input.RMS_NORM, post_norm),
        down=group(("mlp.down_proj",), Input.SILU),
        head_norms=head_norms,
    )


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        NqEdgeError: NQ-CUDA when it is a GPU that PyTorch does not see, NQ-OPTION when it is neither GPU nor CPU.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise NqEdgeError("NQ-OPTION", f"device {name!r} is not one that PyTorch knows.") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise NqEdgeError("NQ-OPTION", f"device {name!r} is neither a CUDA GPU nor the CPU.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise NqEdgeError(
            "NQ-CUDA",
            f"device {name!r} does not exist: PyTorch {torch.__version__} sees {count} NVIDIA GPUs.",
            "Check nvidia-smi and that PyTorch is a CUDA build, or pass device='cpu' (slow).",
        )
    return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())


def _activation_type(device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cuda" and dtype not in (torch.float16, torch.bfloat16):
        raise NqEdgeError("NQ-OPTION", f"the GPU kernels take float16 or bfloat16 activations, not {dtype}.")
    return dtype
