# SPDX-License-Identifier: Apache-2.0
"""Times of GPU work in CUDA graphs, and the bandwidth of a copy: what the benchmarks of kernels measure with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["REPETITIONS", "copy_gbs", "graph_us"]

WARM_SECONDS = 0.15
REPETITIONS = 15


def graph_us(calls: list[Callable[[], object]]) -> tuple[float, float, float]:
    """Median, smallest and largest microseconds a call, over replays of a graph of all calls."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_SECONDS:  # clocks rise only under load
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(REPETITIONS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / len(calls))
    return statistics.median(times), min(times), max(times)


def copy_gbs() -> float:
    """Bandwidth of a large device-to-device copy, bytes read and written, in GB/s.

    Not in a graph: there a copy becomes a node for the copy engine, which reaches two thirds of what kernels do.
    """
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(REPETITIONS):
        first.record()
        target.copy_(source)
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3)
    return 2 * source.numel() / statistics.median(times) / 1e3
