# SPDX-License-Identifier: Apache-2.0
"""Running the same small step many times: as one CUDA graph where there is a GPU, as a plain call elsewhere.

A step qualifies when everything it reads and writes keeps its address: parameters, optimizer state, counters, tables.
A tuning step of a small model is some hundred kernels of a few microseconds each, which take several times longer to
launch one by one than to run.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch

__all__ = ["WARM_UP", "Replayed", "captured"]

#: Eager calls before a capture; libraries make their handles and workspaces in the first one.
WARM_UP = 2


class Replayed:
    """A captured step; calling it replays the graph."""

    # All graphs share one memory pool and one stream, so that each uses the others' memory again: they run one after
    # the other and keep nothing in it between runs. PyTorch drops a pool with the last of its graphs.
    _pool: ClassVar[Any] = None
    _stream: ClassVar[Any] = None
    _living: ClassVar[weakref.WeakSet[Replayed]] = weakref.WeakSet()

    def __init__(self, step: Callable[[], None]) -> None:
        if not Replayed._living:
            Replayed._pool = torch.cuda.graph_pool_handle()
        if Replayed._stream is None:
            Replayed._stream = torch.cuda.Stream()
        stream = Replayed._stream
        self._step = step  # the graph knows addresses only; what the step holds must live as long
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=Replayed._pool, stream=stream):
            step()
        Replayed._living.add(self)

    def __call__(self) -> None:
        """Run the step once more."""
        self._graph.replay()


def captured(step: Callable[[], None], device: torch.device, restore: Callable[[], None]) -> Callable[[], None]:
    """The step as a graph on a CUDA device, else itself.

    Args:
        step: does one unit of work on tensors whose addresses stay.
        device: where those tensors lie.
        restore: puts the tensors back to what they were before the warm-up.

    Returns:
        What to call once a step. Where a graph cannot be made (an operation that needs the host), a warning says so
        and the step itself is returned.
    """
    if device.type != "cuda":
        return step
    try:
        replayed: Callable[[], None] = Replayed(step)
    except RuntimeError as error:
        torch.cuda.synchronize()
        warnings.warn(f"no CUDA graph, steps are launched one by one: {str(error).splitlines()[0]}", stacklevel=2)
        replayed = step
    restore()
    return replayed
