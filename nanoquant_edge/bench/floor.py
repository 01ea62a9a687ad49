# SPDX-License-Identifier: Apache-2.0
"""The least time that a decoded token can take: max(bytes / bandwidth, operations / rate) + nodes * time of a node.

Bytes and operations are counted in the bundle's file; bandwidth, rate and the time of a node are measured here: a copy
in memory, the kernel on a matrix in the cache, and a chain of nodes that do nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..formats.bundle import Bundle
from ..formats.graph import MODEL_FILE
from ..formats.onnx_file import initializers
from ..system.native import cpu_sign_rate
from .chain import chain_model

__all__ = ["Floor", "MachineRates", "count_work", "floor_of", "machine_rates"]

#: Bytes of each of the buffers that are copied: more than a core's own caches hold.
_COPY_BYTES = 48 << 20
#: Nodes of the chain that is timed.
_CHAIN = 200
_REPETITIONS = 5


@dataclass(frozen=True)
class MachineRates:
    """What this machine does at most, with `threads` threads.

    Attributes:
        threads: worker threads.
        copy_gbs: bytes read and written by copies, 10^9 a second.
        sign_gops: sign-adds of the kernels from the cache, 10^9 a second, one core's rate times the threads.
        node_us: a node that does nothing, microseconds.
    """

    threads: int
    copy_gbs: float
    sign_gops: float
    node_us: float


@dataclass(frozen=True)
class Floor:
    """The least milliseconds of a decoded token.

    Attributes:
        weight_mb: weights read for a token.
        cache_mb: keys and values read at that context.
        sign_adds: of the compressed layers.
        bytes_ms, operations_ms, nodes_ms: the three terms.
        total_ms: max of the first two, plus the third.
    """

    weight_mb: float
    cache_mb: float
    sign_adds: int
    bytes_ms: float
    operations_ms: float
    nodes_ms: float
    total_ms: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def machine_rates(
    threads: int, *, clock: Callable[[], float] = time.perf_counter, sign_rate: Callable[[], float] = cpu_sign_rate
) -> MachineRates:
    """Measure this machine, in about a second.

    Args:
        threads: worker threads.
        clock: seconds.
        sign_rate: sign-adds that one core does in a second; the best of a few calls counts.

    Raises:
        NqEdgeError: NQ-NATIVE-MISSING without the kernel library, NQ-MISSING without onnxruntime.
    """
    signs = max(sign_rate() for _ in range(_REPETITIONS)) * threads / 1e9
    return MachineRates(threads, _copy_gbs(threads, clock), signs, _node_us(clock))


def _copy_gbs(threads: int, clock: Callable[[], float]) -> float:
    """The best of a few copies, each thread on buffers of its own."""
    pairs = [(np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)) for _ in range(threads)]
    best = float("inf")
    for _ in range(_REPETITIONS):
        workers = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        begin = clock()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, clock() - begin)
    return 2 * _COPY_BYTES * threads / best / 1e9


def _node_us(clock: Callable[[], float]) -> float:
    """A chain of nodes on a token's hidden values, minus a chain of one, over the difference in nodes."""
    from ..runtimes.onnxruntime.session import import_onnxruntime

    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x, best = {"x": np.ones((1, 1, 64), np.float32)}, []
    for count in (1, _CHAIN):
        session = runtime.InferenceSession(chain_model(count), options, ["CPUExecutionProvider"])
        times = []
        for _ in range(60):
            begin = clock()
            session.run(None, x)
            times.append(clock() - begin)
        best.append(min(times))
    return max(best[1] - best[0], 0.0) / (_CHAIN - 1) * 1e6


def count_work(bundle: Bundle) -> tuple[int, int]:
    """Bytes of weights read for a token, and sign-adds of the compressed layers.

    Rotary tables and, where the head has weights of its own, the embedding are read by the row and not counted.
    """
    tensors = initializers(bundle.path(MODEL_FILE).read_bytes())
    untied = any(name.startswith("lm_head.") for name in tensors)
    read = signs = 0
    for name, (dims, size) in tensors.items():
        if name.startswith("rotary.") or (untied and "embed_tokens." in name):
            continue
        read += size
        if name.endswith((".v_packed", ".u_packed")) and len(dims) == 2:
            signs += dims[0] * dims[1] * 32
    return read, signs


def floor_of(bundle: Bundle, rates: MachineRates, *, nodes: int, context: int) -> Floor:
    """The floor of a decoded token.

    Args:
        bundle: for ONNX Runtime on the CPU.
        rates: of this machine.
        nodes: that a step runs.
        context: tokens in the cache.
    """
    read, signs = count_work(bundle)
    kv = bundle.kv
    cache = 2 * kv.layers * kv.heads * kv.head_dim * context * (4 if kv.dtype == "float32" else 2)
    bytes_ms = (read + cache) / rates.copy_gbs / 1e6
    operations_ms = signs / rates.sign_gops / 1e6
    nodes_ms = nodes * rates.node_us / 1e3
    total = max(bytes_ms, operations_ms) + nodes_ms
    return Floor(read / 1e6, cache / 1e6, signs, bytes_ms, operations_ms, nodes_ms, total)
