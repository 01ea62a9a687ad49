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
from torch import Tensor, nn

from ...models.source import SourceModel
from ..execution.block_call import BlockCall, first_inputs, recorded_arguments
from ..execution.parallel import free_host_memory, team
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, cross_entropy
from ..run import Run
from .gradients import refuse_bad_losses

__all__ = [
    "KEPT_STREAMS",
    "InputStreams",
    "gradient_pass_by_blocks",
    "kept_streams",
    "resident_limit",
    "streams_device",
    "windows_in_a_block",
]

#: Block inputs that are kept at one time. Each of 80 blocks is then run 2.8 times before its turn, each of 24 twice.
KEPT_STREAMS = 8
#: Bytes that kept streams take of a GPU, and those that a block's activations take.
_STREAM_BYTES, _BLOCK_BYTES = 6 << 30, 2 << 30
#: Windows that go through a block together at most; more save no launches that count.
_MOST_AT_ONCE = 8


def resident_limit(device: torch.device) -> int:
    """Bytes of float32 weights up to which a model is held whole: half of the free memory, host's and device's."""
    free = [free_host_memory()]
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free) // 2


class InputStreams:
    """The input streams of all blocks, asked for from the last to the first.

    Args:
        first: input of block 0.
        forward: from a block's number and its input stream, the next block's.
        limit: streams kept at one time.
    """

    def __init__(self, first: Tensor, forward: Callable[[int, Tensor], Tensor], limit: int) -> None:
        self._streams, self._forward, self._limit = {0: first}, forward, limit

    @property
    def held(self) -> int:
        """Number of streams that are kept now."""
        return len(self._streams)

    def of(self, goal: int) -> Tensor:
        """The input of block `goal`, which is not asked for again; nor is one behind it."""
        self._streams = {block: stream for block, stream in self._streams.items() if block <= goal}
        if goal in self._streams:
            return self._streams.pop(goal)
        block = max(self._streams)
        stream = self._streams[block]
        while block < goal:
            spare = self._limit - len(self._streams)
            # Every one where there is room for all, else the middle of what is left.
            step = 1 if goal - block <= spare else (goal - block + 1) // 2 if spare > 0 else goal - block
            for _ in range(step):
                stream = self._forward(block, stream)
                block += 1
            if spare > 0 and block < goal:
                self._streams[block] = stream
        return stream


def kept_streams(size: int, device: torch.device) -> int:
    """How many streams of `size` bytes are kept at one time: fewer of large ones on a GPU, but two."""
    if device.type != "cuda":
        return KEPT_STREAMS
    return max(2, min(KEPT_STREAMS, _STREAM_BYTES // size))


def streams_device(size: int, device: torch.device) -> torch.device:
    """The device that keeps streams of `size` bytes each."""
    count = kept_streams(size, device) + 3
    if device.type == "cuda" and 4 * count * size > 3 * torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device


def windows_in_a_block(block: nn.Module, length: int, device: torch.device) -> int:
    """Windows that go through a block together there and back: eight at most, one on a CPU."""
    if device.type != "cuda":
        return 1
    widths = sum(layer.in_features + layer.out_features for layer in block.modules() if isinstance(layer, nn.Linear))
    # What autograd keeps of a block is about a float32 value for each input and output of a linear.
    return max(1, min(_MOST_AT_ONCE, _BLOCK_BYTES // (4 * length * widths)))


def gradient_pass_by_blocks(
    source: SourceModel,
    windows: Tensor,
    run: Run,
    *,
    passes: int = 1,
    after: Callable[[int, int], None] | None = None,
) -> None:
    """What `gradients.gradient_pass` does, for hooks to watch, with one block's weights and activations in memory.

    Hooks see the layers of a block in passes without gradients as well; those are not to be counted. Holds a block,
    some input streams and the gradient (windows, length, hidden) in float32, on a GPU where they take no more than
    three quarters of its free memory and else on the host, and the activations of a few windows in one block.

    Args:
        source: the dense model, on its device.
        windows: int64 (windows, length).
        run: its compute type is that of the passes.
        passes: over each block before the one in front of it has its turn; all see the same inputs and gradients.
        after: called after each of a block's passes with the block's number and the pass's.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    model, family, dtype = source.model, source.family, run.dtype
    blocks = model.get_submodule(family.blocks)
    head = Head.of(model, dtype)
    device, count = head.weight.device, len(blocks)
    share = team().share(windows).to(device)
    calls = [BlockCall(keywords, device, dtype) for keywords in recorded_arguments(model, blocks, share[:1])]
    at_once = windows_in_a_block(blocks[0], share.shape[1], device)

    def forward(index: int, stream: Tensor) -> Tensor:
        with source.opened(f"{family.blocks}.{index}") as block:
            return calls[index].over(block, stream, at_once)

    size = share.numel() * head.weight.shape[1] * 4
    kept_on = streams_device(size, device)
    first = torch.cat([first_inputs(model, blocks, ids).to(kept_on, torch.float32) for ids in share.split(1)])
    inputs = InputStreams(first, forward, kept_streams(size, device))
    del first
    gradient = inputs.of(count)  # what leaves the last block; replaced by its gradient part by part
    norm, losses = model.get_submodule(family.final_norm), []
    parts = [slice(start, min(start + at_once, len(share))) for start in range(0, len(share), at_once)]
    for part in parts:
        x, ids = _copied(gradient[part], device).requires_grad_(True), share[part]
        with compute_in(dtype, device):
            hidden = norm(x)
        losses.append(cross_entropy(hidden[:, :-1].to(dtype), head, ids[:, 1:], backward=True))
        gradient[part] = _gradient(x)
    refuse_bad_losses(losses, at_once)
    for index in reversed(range(count)):
        stream = inputs.of(index)
        with source.opened(f"{family.blocks}.{index}") as block:
            for number in range(passes):
                for part in parts:
                    x = _copied(stream[part], device).requires_grad_(True)
                    calls[index](block, x).backward(_copied(gradient[part], device))
                    if number + 1 == passes:
                        gradient[part] = _gradient(x)
                    run.progress((count - index - 1 + (number + part.stop / len(share)) / passes) / count)
                if after is not None:
                    after(index, number)


def _gradient(x: Tensor) -> Tensor:
    """The gradient that reached some windows (windows, length, hidden)."""
    assert x.grad is not None
    return x.grad


def _copied(stream: Tensor, device: torch.device) -> Tensor:
    """A copy of some windows (windows, length, hidden) on the device."""
    return stream.to(device, copy=True)
