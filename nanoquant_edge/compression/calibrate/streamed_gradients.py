# SPDX-License-Identifier: Apache-2.0
"""The dense model's forward and backward pass a block at a time, for models whose blocks are read when needed.

All windows go through a block before the next one is read, so a block's inputs are needed again when its turn comes in
the backward pass. Keeping them for all blocks would take blocks x windows x length x hidden numbers: 687 GB in float32
for 80 blocks of Llama-2-70B and 128 windows of 2048. So a few streams are kept, and those between are computed again
from the nearest one before (recursive checkpointing, Griewank and Walther 2000, ACM TOMS 26(1)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...models.source import SourceModel
from ..execution.block_call import BlockCall, first_inputs, recorded_arguments
from ..execution.parallel import free_host_memory, team
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, cross_entropy
from .gradients import refuse_bad_losses

__all__ = ["KEPT_STREAMS", "gradient_pass_by_blocks", "resident_limit"]

#: Block inputs that are kept at one time. Each of 80 blocks is then run 2.8 times before its turn, each of 24 twice.
KEPT_STREAMS = 8


def resident_limit(device: torch.device) -> int:
    """Bytes of float32 weights up to which a model is held whole: half of the free memory, host's and device's."""
    free = [free_host_memory()]
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free) // 2


class _Inputs:
    """The input streams of all blocks, asked for from the last to the first.

    Args:
        first: input of block 0.
        forward: from a block's number and its input stream, the next block's.
        limit: streams kept at one time.
    """

    def __init__(self, first: Tensor, forward: Callable[[int, Tensor], Tensor], limit: int) -> None:
        self._kept, self._forward, self._limit = {0: first}, forward, limit

    def of(self, goal: int) -> Tensor:
        """The input of block `goal`, which is not asked for again; nor is one behind it."""
        self._kept = {place: stream for place, stream in self._kept.items() if place <= goal}
        if goal in self._kept:
            return self._kept.pop(goal)
        at = max(self._kept)
        stream = self._kept[at]
        while at < goal:
            spare = self._limit - len(self._kept)
            # Every one where there is room for all, else the middle of what is left.
            step = 1 if goal - at <= spare else (goal - at + 1) // 2 if spare > 0 else goal - at
            for _ in range(step):
                stream = self._forward(at, stream)
                at += 1
            if spare > 0 and at < goal:
                self._kept[at] = stream
        return stream


def _home(size: int, device: torch.device) -> torch.device:
    """Where streams of `size` bytes each are kept."""
    if device.type == "cuda" and 4 * (KEPT_STREAMS + 3) * size > 3 * torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device


def _input_gradient(x: Tensor) -> Tensor:
    """The gradient (length, hidden) that reached one window."""
    assert x.grad is not None
    return x.grad[0]


def _window(stream: Tensor, index: int, device: torch.device) -> Tensor:
    """A copy of one window (1, length, hidden) on the device."""
    return stream[index : index + 1].to(device, copy=True)


def gradient_pass_by_blocks(
    source: SourceModel,
    windows: Tensor,
    report: Callable[[float], None] = lambda _fraction: None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """What `gradients.gradient_pass` does, for hooks to watch, with one block's weights in memory.

    Hooks see the layers of a block in passes without gradients as well; those are not to be counted. Holds a block,
    `KEPT_STREAMS` input streams and the gradient (windows, length, hidden) in float32, on a GPU where they take no more
    than three quarters of its free memory and else on the host, and the activations of one window in one block.

    Args:
        source: the dense model, on its device.
        windows: int64 (windows, length).
        report: called with the fraction done.
        dtype: compute type of the passes.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    model, family = source.model, source.family
    blocks = model.get_submodule(family.blocks)
    head = Head.of(model, dtype)
    device, count = head.weight.device, len(blocks)
    part = team().share(windows).to(device)
    calls = [BlockCall(keywords, device, dtype) for keywords in recorded_arguments(model, blocks, part[:1])]

    def forward(index: int, stream: Tensor) -> Tensor:
        with source.opened(f"{family.blocks}.{index}") as block:
            return calls[index].over(block, stream, 1)

    home = _home(part.numel() * head.weight.shape[1] * 4, device)
    first = torch.cat([first_inputs(model, blocks, ids).to(home, torch.float32) for ids in part.split(1)])
    inputs = _Inputs(first, forward, KEPT_STREAMS)
    del first
    gradient = inputs.of(count)  # what leaves the last block; replaced by its gradient window by window
    norm, losses = model.get_submodule(family.final_norm), []
    for index, ids in enumerate(part):
        x = _window(gradient, index, device).requires_grad_(True)
        with compute_in(dtype, device):
            hidden = norm(x)
        losses.append(cross_entropy(hidden[:, :-1].to(dtype), head, ids[None, 1:], backward=True))
        gradient[index] = _input_gradient(x)
    refuse_bad_losses(losses)
    for place in reversed(range(count)):
        stream = inputs.of(place)
        with source.opened(f"{family.blocks}.{place}") as block:
            for index in range(len(part)):
                x = _window(stream, index, device).requires_grad_(True)
                calls[place](block, x).backward(_window(gradient, index, device))
                gradient[index] = _input_gradient(x)
        report((count - place) / count)
