# SPDX-License-Identifier: Apache-2.0
"""Several processes on one compression, started by torchrun: each takes a share of the windows of every pass and step.

    torchrun --nproc-per-node 2 --no-python nq-edge compress MODEL --output checkpoint

What is trained is the same in all processes: gradients are summed, and whatever is computed in each of them is taken
from the first one. A step on fewer windows than there are processes is done by all of them alike, so stages with a
batch of one gain nothing. A block's layers wait for each other, but the two sides of a large layer's LB-ADMM are two
processes' work. Only the first process writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import NqEdgeError
from ...system.memory import memory_available

__all__ = ["Team", "free_host_memory", "joined_team", "team"]


@dataclass(frozen=True)
class Team:
    """This process among those that work together.

    Attributes:
        rank: number of this process; the first one writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of a tensor's rows; all of them where there are too few to go round."""
        return items if len(items) < self.size else items[self.rank :: self.size]

    def splits(self, count: int) -> bool:
        """Whether so many rows are shared out."""
        return 1 < self.size <= count

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors of one type over the processes, in place."""
        self._as_one_message(list(tensors), lambda flat: dist.all_reduce(flat))

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        self.take(tensors, 0)

    def take(self, tensors: Iterable[Tensor], rank: int) -> None:
        """Replace tensors of one type by those of process `rank`."""
        self._as_one_message(list(tensors), lambda flat: dist.broadcast(flat, rank))

    def largest(self, value: Tensor) -> Tensor:
        """The element-wise maximum over the processes."""
        maximum = value.clone()
        if self.size > 1:
            dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
        return maximum

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def _as_one_message(self, tensors: list[Tensor], act: object) -> None:
        """One message for all tensors."""
        if self.size == 1 or not tensors:
            return
        assert callable(act)
        with torch.no_grad():
            if len(tensors) == 1 and tensors[0].is_contiguous():
                act(tensors[0].detach())
                return
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            act(flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def team() -> Team:
    """The processes that work together now; this one alone where none were joined."""
    if dist.is_available() and dist.is_initialized():
        return Team(dist.get_rank(), dist.get_world_size())
    return Team()


def free_host_memory() -> int:
    """Bytes of this host's memory that this process may count on: processes that torchrun started here share it."""
    return (memory_available() or sys.maxsize) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined_team(device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """Join the processes that torchrun started, for as long as the context lasts.

    Args:
        device: asked for; "cuda" becomes the GPU with this process's local number.

    Yields:
        The team and the device of this process.

    Raises:
        NqEdgeError: NQ-OPTION when there are fewer GPUs than processes on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield team(), device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise NqEdgeError(
                "NQ-OPTION",
                f"process {local} of this machine has no GPU of its own; there are {torch.cuda.device_count()}.",
                "Start as many processes as there are GPUs, or use --device cpu.",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield team(), device
    finally:
        dist.destroy_process_group()
