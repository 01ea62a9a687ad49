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
from typing import Any

import torch

__all__ = ["GRAPHS", "WARM_UP", "GraphPool", "Replayed", "captured"]

#: Eager calls before a capture; libraries make their handles and workspaces in the first one.
WARM_UP = 2


class Replayed:
    """A captured step; calling it replays the graph."""

    def __init__(self, step: Callable[[], None], graph: Any) -> None:
        self._step = step  # the graph knows addresses only; what the step holds must live as long
        self._graph = graph

    def __call__(self) -> None:
        """Run the step once more."""
        self._graph.replay()


class GraphPool:
    """Graphs that share one memory pool and one stream, so that each uses the others' memory again.

    They run one after the other and keep nothing in that memory between runs. PyTorch drops a pool with the last of
    its graphs.

    Args:
        cuda: `torch.cuda`, or what stands for it.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self.cuda = cuda
        self._pool: Any = None
        self._stream: Any = None
        self._living: weakref.WeakSet[Replayed] = weakref.WeakSet()

    def capture(self, step: Callable[[], None]) -> Replayed:
        """Run a step a few times, then capture it.

        Raises:
            RuntimeError: when it does what a graph cannot repeat.
        """
        cuda = self.cuda
        if not self._living:
            self._pool = cuda.graph_pool_handle()
        if self._stream is None:
            self._stream = cuda.Stream()
        stream = self._stream
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        cuda.current_stream().wait_stream(stream)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool, stream=stream):
            step()
        replayed = Replayed(step, graph)
        self._living.add(replayed)
        return replayed


#: The graphs of this process.
GRAPHS = GraphPool()


def captured(
    step: Callable[[], None], device: torch.device, restore: Callable[[], None], graphs: GraphPool = GRAPHS
) -> Callable[[], None]:
    """The step as a graph on a CUDA device, else itself.

    Args:
        step: does one unit of work on tensors whose addresses stay.
        device: where those tensors lie.
        restore: puts the tensors back to what they were before the warm-up.
        graphs: the pool that the graph joins.

    Returns:
        What to call once a step. Where a graph cannot be made (an operation that needs the host), a warning says so
        and the step itself is returned.
    """
    if device.type != "cuda":
        return step
    try:
        replayed: Callable[[], None] = graphs.capture(step)
    except RuntimeError as error:
        graphs.cuda.synchronize()
        warnings.warn(f"no CUDA graph, steps are launched one by one: {str(error).splitlines()[0]}", stacklevel=2)
        replayed = step
    restore()
    return replayed
