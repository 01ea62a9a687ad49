# SPDX-License-Identifier: Apache-2.0
"""Calling one decoder block of a model as the model itself does (docs/METHOD.md, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .precision import compute_in

__all__ = ["BlockCall", "final_states", "first_inputs", "recorded_arguments", "same_arguments"]


@dataclass
class BlockCall:
    """How to call a decoder block: keyword arguments recorded from the dense model, and the compute type."""

    arguments: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Block output (batch, length, hidden), float32."""
        with compute_in(self.dtype, self.device):
            output = block(hidden, **self.arguments)
        return (output[0] if isinstance(output, tuple) else output).float()

    @torch.no_grad()
    def over(self, block: nn.Module, stream: Tensor, at_once: int) -> Tensor:
        """The block's output for a whole stream (windows, length, hidden) that lies on the CPU or the device.

        Args:
            block: on the device.
            stream: float32, on the CPU or the device.
            at_once: windows that go through together.
        """
        outputs = torch.empty_like(stream, dtype=torch.float32)
        for output, part in zip(outputs.split(at_once), stream.split(at_once), strict=True):
            output.copy_(self(block, part.to(self.device)))
        return outputs


def recorded_arguments(model: Any, blocks: nn.ModuleList, ids: Tensor) -> list[dict[str, Any]]:
    """Keyword arguments each block is called with, for one window; the blocks themselves do not run.

    Args:
        model: transformers causal language model.
        blocks: its decoder blocks.
        ids: int64 (1, length), on the model's device.
    """
    recorded: list[dict[str, Any]] = []

    def hook(_module: nn.Module, _arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        skipped = ("past_key_values", "hidden_states")
        others = {name: value for name, value in keywords.items() if name not in skipped}
        recorded.append({**others, "use_cache": False})

    def through(hidden_states: Tensor, *_arguments: Any, **_keywords: Any) -> Tensor:
        return hidden_states

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        for block in blocks:
            block.forward = through  # covers the class's own until it is deleted
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            block.__dict__.pop("forward", None)
    return recorded


class _FirstBlockReached(Exception):
    """Ends a forward pass at the first block."""


@torch.no_grad()
def first_inputs(model: Any, blocks: nn.ModuleList, ids: Tensor) -> Tensor:
    """What the first block is given: embeddings, scaled or with positions added as the family has it.

    Args:
        ids: int64 (batch, length), on the model's device.

    Returns:
        (batch, length, hidden).
    """
    seen: list[Tensor] = []

    def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _FirstBlockReached

    handle = blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model.base_model(input_ids=ids, use_cache=False)
    except _FirstBlockReached:
        pass
    finally:
        handle.remove()
    return seen[0].detach()


@torch.no_grad()
def final_states(norm: nn.Module, stream: Tensor, *, device: torch.device, dtype: torch.dtype, at_once: int) -> Tensor:
    """What the head is given, from what leaves the last block: no family does anything but a norm in between.

    Args:
        norm: the model's final norm, on `device`.
        stream: float32 (windows, length, hidden), on the CPU or the device.
        device: where to compute.
        dtype: compute type.
        at_once: windows that go through together.

    Returns:
        (windows, length, hidden) in `dtype`, where the stream lies.
    """
    parts = []
    for part in stream.split(at_once):
        with compute_in(dtype, device):
            parts.append(norm(part.to(device)).to(stream.device, dtype))
    return torch.cat(parts)


def same_arguments(one: Any, other: Any) -> bool:
    """Whether two blocks are called with the same values, so that one can be run in the other's place."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_arguments(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same_arguments, one, other))
    return type(one) is type(other) and (one is other or one == other)
