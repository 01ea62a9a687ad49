# SPDX-License-Identifier: Apache-2.0
"""One execution context with its buffers: inputs, logits, debug outputs, and, for a step that repeats, a CUDA graph.

Buffers are allocated once and grow when they must. Inputs are kept in host memory too, so that only what changed
travels: a decode step sends the new token and one element of the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import NqEdgeError
from ...formats.graph import PAST, PRESENT
from .cache import ITEM_BYTES, aligned
from .device import Device
from .engine import Context, Engine

__all__ = ["Buffers", "Execution", "Shape", "as_float32"]

Shape = tuple[int, ...]


def as_float32(raw: np.ndarray, dtype: str, shape: Shape) -> np.ndarray:
    """Bytes of the GPU as float32 numbers.

    Args:
        raw: uint8, at least as many as the shape needs.
        dtype: what they are; bfloat16, which numpy lacks, is the upper half of a float32.
        shape: of the result.
    """
    used = raw[: int(np.prod(shape)) * ITEM_BYTES[dtype]]
    if dtype == "bfloat16":
        return (used.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return used.view(dtype).astype(np.float32).reshape(shape)


class Buffers:
    """Named GPU memory that only grows.

    Args:
        device: where it lies.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, int]] = {}

    def reserve(self, name: str, size: int) -> int:
        """Address of at least `size` bytes; another one than before when they did not fit."""
        address, capacity = self._held.get(name, (0, 0))
        if address and capacity >= size:
            return address
        if address:
            self._held.pop(name)
            self._device.synchronize()
            self._device.free(address)
        address = self._device.allocate(aligned(max(size, 1)))
        self._held[name] = (address, aligned(max(size, 1)))
        return address

    def release(self) -> None:
        """Give all back."""
        buffers, self._held = self._held, {}
        for address, _ in buffers.values():
            self._device.free(address)


class Execution:
    """A context on one profile, from inputs in numpy to outputs in numpy.

    Args:
        device: the GPU.
        engine: the loaded engine.
        context: on the wanted profile.
        graphs: record a step into a CUDA graph when its shapes and addresses come a second time.

    Attributes:
        graph_refusal: why steps are enqueued one by one although graphs were asked for, or "".
    """

    def __init__(self, device: Device, engine: Engine, *, context: Context, graphs: bool) -> None:
        self._device, self._engine, self._context = device, engine, context
        self._graphs = graphs
        self.graph_refusal = ""
        self._buffers = Buffers(device)
        self._sent: dict[str, np.ndarray] = {}
        self._bound: tuple[Any, ...] | None = None
        self._graph: Any = None
        self._warm = False
        self._shapes: dict[str, Shape] = {}
        self._staging: dict[int, np.ndarray] = {}

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        caches: Mapping[str, int],
        *,
        cache_shape: Shape,
        outputs: Mapping[str, Shape],
    ) -> dict[str, int]:
        """Queue one execution.

        Args:
            inputs: int64 arrays by name.
            caches: "{layer}.key|value" -> address of the past, [batch, kv_heads, capacity, head_dim].
            cache_shape: that shape.
            outputs: shapes of all outputs but those that are written into the cache.

        Returns:
            Addresses of the outputs, valid until the next run.
        """
        addresses = {
            name: self._buffers.reserve(name, int(np.prod(shape)) * ITEM_BYTES[self._engine.tensors[name].dtype])
            for name, shape in outputs.items()
        }
        input_addresses = {name: self._buffers.reserve(name, array.nbytes) for name, array in inputs.items()}
        for name, array in inputs.items():
            self._send(name, input_addresses[name], array)
        shapes = {name: array.shape for name, array in inputs.items()}
        self._bind(input_addresses, addresses, shapes, caches, cache_shape, outputs)
        self._launch()
        return addresses

    def read(self, name: str, address: int, shape: Shape) -> np.ndarray:
        """An output as float32; waits for the execution."""
        dtype = self._engine.tensors[name].dtype
        size = int(np.prod(shape)) * ITEM_BYTES[dtype]
        raw = self._host(size)[:size]
        self._device.download(raw, address)
        return as_float32(raw, dtype, shape)

    def forget_graph(self) -> None:
        """Drop the graph: the cache moves."""
        graph, self._graph, self._bound, self._warm = self._graph, None, None, False
        if graph is not None:
            self._device.synchronize()
            self._device.release_graph(graph)

    def close(self) -> None:
        """Give context, graph and buffers back."""
        self.forget_graph()
        self._context.close()
        self._buffers.release()
        self._sent, self._staging = {}, {}

    def _host(self, size: int) -> np.ndarray:
        """Page-locked memory of at least `size` bytes; sizes are powers of two, so that few are ever made."""
        rounded = 1 << max(size - 1, 4095).bit_length()
        if rounded not in self._staging:
            self._staging[rounded] = self._device.host_array(rounded)
        return self._staging[rounded]

    def _send(self, name: str, address: int, array: np.ndarray) -> None:
        """Upload what differs from what the GPU holds."""
        array = np.ascontiguousarray(array, dtype=np.int64)
        flat, key = array.reshape(-1), f"{name}@{address}"
        old = self._sent.get(key)
        first, last = 0, flat.size
        if old is not None and old.size == flat.size:
            differing = np.flatnonzero(old != flat)
            if not differing.size:
                return
            first, last = int(differing[0]), int(differing[-1]) + 1
        self._device.upload(address + first * flat.itemsize, flat[first:last])
        self._sent = {other: array for other, array in self._sent.items() if not other.startswith(f"{name}@")}
        self._sent[key] = flat.copy()

    def _bind(
        self,
        input_addresses: Mapping[str, int],
        addresses: Mapping[str, int],
        shapes: Mapping[str, Shape],
        caches: Mapping[str, int],
        cache_shape: Shape,
        outputs: Mapping[str, Shape],
    ) -> None:
        """Tell the context its shapes and addresses, unless they are those of the last run.

        Raises:
            NqEdgeError: NQ-BUNDLE when an output would not have the size of its buffer.
        """
        state = (input_addresses, addresses, shapes, tuple(caches.values()), cache_shape)
        if state == self._bound:
            return
        self.forget_graph()
        for name, shape in shapes.items():
            self._context.set_shape(name, shape)
            self._context.set_address(name, input_addresses[name])
        for name, address in caches.items():
            self._context.set_shape(PAST + name, cache_shape)
            self._context.set_address(PAST + name, address)
            if PRESENT + name not in addresses:  # written in place
                self._context.set_address(PRESENT + name, address)
        for name, address in addresses.items():
            found = self._context.output_shape(name)
            if found != outputs[name]:
                raise NqEdgeError(
                    "NQ-BUNDLE",
                    f"the engine would write {name} of shape {list(found)}, expected is {list(outputs[name])}.",
                    "Run `nq-edge build` again.",
                )
            self._context.set_address(name, address)
        self._bound = state

    def _launch(self) -> None:
        """Enqueue, or replay.

        The first run with new shapes is enqueued: TensorRT then finishes what it had put off, which a capture does not
        allow (Developer Guide, "CUDA Graphs"). The second run is recorded and launched, later ones only launched.
        """
        stream = self._device.stream
        if self._graph is not None:
            self._device.launch(self._graph)
        elif self._graphs and self._warm and self._context.capturable(stream):
            self._graph = self._capture(stream)
            if self._graph is None:
                self._context.enqueue(stream)
            else:
                self._device.launch(self._graph)
        else:
            self._context.enqueue(stream)
            self._warm = True

    def _capture(self, stream: int) -> Any:
        """A graph of the step; None, now and for good, when it cannot be captured: enqueued it does the same."""
        self._device.begin_capture()
        captured = False
        try:
            self._context.enqueue(stream)
            captured = True
        except NqEdgeError as error:
            self._graphs, self.graph_refusal = False, error.message
        finally:
            graph = self._device.end_capture(keep=captured)
        return graph
