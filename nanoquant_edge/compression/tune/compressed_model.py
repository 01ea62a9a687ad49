# SPDX-License-Identifier: Apache-2.0
"""The whole model with compressed layers in it, called so that a training step can be captured as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.block_call import recorded_arguments
from .layers import ScaledCore, replace_module

__all__ = [
    "compressed_layers",
    "fixed_masks",
    "mask_placeholder",
    "must_recompute",
    "recomputed",
    "recorded_masks",
]


def recorded_masks(model: Any, blocks: nn.ModuleList, ids: Tensor) -> list[Any]:
    """The attention mask that each block is called with, for token ids (1, length)."""
    return [keywords.get("attention_mask") for keywords in recorded_arguments(model, blocks, ids)]


@contextlib.contextmanager
def compressed_layers(model: Any, cores: dict[str, ScaledCore]) -> Iterator[None]:
    """The compressed layers in place of the dense ones, which come back in the end."""
    dense = {name: model.get_submodule(name) for name in cores}
    try:
        for name, core in cores.items():
            replace_module(model, name, core)
        yield
    finally:
        for name, layer in dense.items():
            replace_module(model, name, layer)


@contextlib.contextmanager
def fixed_masks(blocks: nn.ModuleList, masks: list[Any]) -> Iterator[None]:
    """Every block is called with its mask, whatever the model hands it."""

    def with_mask(mask: Any) -> Callable[..., Any]:
        return lambda _module, arguments, keywords: (arguments, {**keywords, "attention_mask": mask})

    handles = [
        block.register_forward_pre_hook(with_mask(mask), with_kwargs=True)
        for block, mask in zip(blocks, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def mask_placeholder(model: Any, ids: Tensor) -> Tensor | None:
    """What keeps transformers from making masks, where the blocks are given theirs by hooks; None if it does not work.

    To see whether a mask is needed transformers looks at values, which cannot be done inside a CUDA graph. A mask of
    four dimensions is passed on as it is.
    """
    empty = torch.ones(1, 1, 1, 1, device=ids.device)
    try:
        found, wanted = (
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for mask in (empty, None)
        )
    except (RuntimeError, ValueError, IndexError, TypeError):  # a family that reads positions from its mask (OPT)
        return None
    return empty if torch.equal(found, wanted) else None


def must_recompute(blocks: nn.ModuleList, tokens: int, device: torch.device) -> bool:
    """Whether the activations of all blocks would take more than a quarter of a GPU's free memory; always on a CPU."""
    if device.type != "cuda":
        return True
    # A block keeps about eight float32 values for each input and output of its linears.
    widths = sum(m.in_features + m.out_features for m in blocks[0].modules() if isinstance(m, nn.Linear))
    needed = 8 * 4 * widths * tokens * len(blocks)
    return needed > torch.cuda.mem_get_info(device)[0] // 4


@contextlib.contextmanager
def recomputed(model: Any, blocks: nn.ModuleList, wanted: bool) -> Iterator[None]:
    """Blocks that are recomputed in the backward pass where that is wanted; the model in evaluation mode afterwards."""
    try:
        _set_checkpointing(model, wanted)
        # Checkpointing looks at the blocks' own training flag; their children stay in evaluation mode (no dropout).
        for block in blocks:
            block.training = wanted
        yield
    finally:
        _set_checkpointing(model, False)
        model.eval()


def _set_checkpointing(model: Any, wanted: bool) -> None:
    """Switch activation checkpointing, under the name it has in this version of transformers.

    Nothing in the blocks is random, and asking a GPU for its generator's state would end the capture of a graph.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if wanted:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False, "preserve_rng_state": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
