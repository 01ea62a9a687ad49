# SPDX-License-Identifier: Apache-2.0
"""One GPU through the library's own functions (nq_cuda_memory.h): memory, copies, a stream, graphs. Numpy alone.

Everything that a model computes goes through one stream, in order; what a call of the host needs, it waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import byref, c_float, c_int32, c_size_t, c_void_p
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import NqEdgeError
from . import binding
from .binding import CDevice, Status

__all__ = ["ALIGNMENT", "Device", "Event", "Graph", "Memory", "Pinned", "aligned", "device_count", "device_index"]

#: Of what is allocated, and of the parts of one allocation: the strictest that any kernel asks for.
ALIGNMENT = 256


def aligned(size: int) -> int:
    """A size in bytes, rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def device_count() -> int:
    """Number of NVIDIA GPUs that this process sees; 0 without a driver or without the library.

    Example:
        >>> device_count() >= 0
        True
    """
    try:
        library = binding.library()
    except NqEdgeError:
        return 0
    count = c_int32(0)
    status = library.nq_cuda_device_count(byref(count))
    return count.value if status == Status.OK else 0


def device_index(name: str) -> int:
    """The number of the GPU that "cuda" or "cuda:N" names; "auto" is the first one.

    Raises:
        NqEdgeError: NQ-OPTION for another name.

    Example:
        >>> device_index("cuda:1")
        1
    """
    kind, _, number = ("cuda" if name == "auto" else name).partition(":")
    if kind != "cuda" or (":" in name and not (number.isascii() and number.isdigit() and len(number) < 4)):
        raise NqEdgeError("NQ-OPTION", f"{name[:40]!r} names no GPU.", 'Pass "cuda", or "cuda:1" for the second one.')
    return int(number or 0)


class Memory:
    """Device memory; `free` gives it back, a second time does nothing.

    Attributes:
        address: of the first byte, a multiple of `ALIGNMENT`; 0 once freed.
        size: bytes.
    """

    def __init__(self, device: Device, address: int, size: int) -> None:
        self._device, self.address, self.size = device, address, size

    def free(self) -> None:
        """Give it back; waits for what the device computes."""
        if self.address:
            self._device.release(self)
            self.address = 0


class Pinned:
    """Host memory that the device copies from at full speed.

    Attributes:
        address: of the first byte.
        bytes: uint8 view of it; none may be in use when the memory is freed.
    """

    def __init__(self, device: Device, address: int, size: int) -> None:
        self._device, self.address = device, address
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def view(self, dtype: DTypeLike, offset: int, count: int) -> NDArray[Any]:
        """`count` numbers that begin at byte `offset`."""
        width = np.dtype(dtype).itemsize
        return self.bytes[offset : offset + count * width].view(dtype)

    def free(self) -> None:
        """Give it back."""
        if self.address:
            self._device.release_pinned(self.address)
            self.address = 0
            self.bytes = np.zeros(0, np.uint8)


class Graph:
    """Calls that were captured, to be launched as one."""

    def __init__(self, device: Device, handle: int) -> None:
        self._device, self._handle = device, handle

    def launch(self) -> None:
        """Do all of it once more, in the device's stream."""
        self._device.call("nq_cuda_graph_launch", self._handle, self._device.stream)

    def free(self) -> None:
        """Give it back; not while it runs."""
        if self._handle:
            self._device.call("nq_cuda_graph_destroy", self._handle)
            self._handle = 0


class Device:
    """A GPU that this process computes on.

    Args:
        index: which one.

    Attributes:
        name: as the driver tells it.
        description: `nq_cuda_device`.
        stream: address of the one stream.

    Raises:
        NqEdgeError: NQ-CUDA without such a GPU, or where the library has no code for it; NQ-NATIVE-MISSING without the
            library.
    """

    def __init__(self, index: int = 0) -> None:
        self.library: Any = binding.library()
        self.index = index
        count = c_int32(0)
        self.call("nq_cuda_device_count", byref(count))
        if index >= count.value:
            raise NqEdgeError(
                "NQ-CUDA",
                f"there is no device cuda:{index}: this process sees {count.value} NVIDIA GPUs.",
                "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or pass --device cpu.",
            )
        self.use()
        self.description = CDevice()
        self.call("nq_cuda_describe", byref(self.description))
        text = ctypes.create_string_buffer(256)
        self.call("nq_cuda_device_name", index, text, len(text))
        self.name = text.value.decode("utf-8", "replace")
        self._allocated: dict[int, int] = {}
        self._pinned: set[int] = set()
        handle = c_void_p()
        self.call("nq_cuda_stream_create", byref(handle))
        self.stream = handle.value

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library.

        Raises:
            NqEdgeError: NQ-CUDA when it says so.
        """
        status = getattr(self.library, name)(*arguments)
        if status:
            binding.check(status, name)

    def use(self) -> None:
        """Make this the calling thread's device; every entry from another thread begins with it."""
        self.call("nq_cuda_set_device", self.index)

    @property
    def held(self) -> int:
        """Bytes of device memory that are allocated now."""
        return sum(self._allocated.values())

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, and in all."""
        free, total = c_size_t(0), c_size_t(0)
        self.call("nq_cuda_memory_info", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int, what: str) -> Memory:
        """Device memory with unknown contents.

        Raises:
            NqEdgeError: NQ-MEMORY naming what it was for.
        """
        address = c_void_p()
        status = self.library.nq_cuda_allocate(max(size, ALIGNMENT), byref(address))
        if status or not address.value:
            free, total = self.memory()
            raise NqEdgeError(
                "NQ-MEMORY",
                f"{what} needs {size / 1e6:.0f} MB of GPU memory; {free / 1e6:.0f} of {total / 1e6:.0f} MB are free.",
                "Close what else uses the GPU, or pass a smaller --max-context.",
            )
        self._allocated[address.value] = size
        return Memory(self, address.value, size)

    def zeroed(self, size: int, what: str) -> Memory:
        """The same, all bytes zero."""
        memory = self.allocate(size, what)
        self.fill(memory.address, 0, memory.size)
        return memory

    def release(self, memory: Memory) -> None:
        """See `Memory.free`."""
        if self._allocated.pop(memory.address, None) is not None:
            self.call("nq_cuda_free", memory.address)

    def pinned(self, size: int) -> Pinned:
        """Host memory for copies.

        Raises:
            NqEdgeError: NQ-MEMORY.
        """
        address = c_void_p()
        if self.library.nq_cuda_allocate_pinned(size, byref(address)) or not address.value:
            raise NqEdgeError("NQ-MEMORY", f"{size / 1e6:.0f} MB of host memory cannot be held for copies.")
        self._pinned.add(address.value)
        return Pinned(self, address.value, size)

    def release_pinned(self, address: int) -> None:
        """See `Pinned.free`."""
        if address in self._pinned:
            self._pinned.discard(address)
            self.call("nq_cuda_free_pinned", address)

    def copy(self, to: int, source: int, size: int) -> None:
        """Enqueue a copy between any two addresses."""
        self.call("nq_cuda_copy", to, source, size, self.stream)

    def fill(self, address: int, value: int, size: int) -> None:
        """Enqueue setting `size` bytes."""
        self.call("nq_cuda_fill", address, value, size, self.stream)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a small array to the device; it is read when this returns."""
        array = np.ascontiguousarray(array)
        self.copy(address, array.ctypes.data, array.nbytes)
        self.synchronize()

    def download(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array from the device, once everything before it is done."""
        array = np.empty(shape, dtype)
        if array.size:
            self.copy(array.ctypes.data, address, array.nbytes)
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self.call("nq_cuda_synchronize", self.stream)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[list[Graph]]:
        """Keep what is enqueued inside as a graph, which is put into the list; nothing of it is done now."""
        found: list[Graph] = []
        self.call("nq_cuda_capture_begin", self.stream)
        handle = c_void_p()
        try:
            yield found
        except BaseException:
            # The stream must be usable again; its own complaint is not the interesting one.
            self.library.nq_cuda_capture_end(self.stream, byref(handle))
            if handle.value:
                self.library.nq_cuda_graph_destroy(handle)
            raise
        self.call("nq_cuda_capture_end", self.stream, byref(handle))
        assert handle.value is not None
        found.append(Graph(self, handle.value))

    def event(self) -> Event:
        """A mark for places in the stream."""
        return Event(self)

    def close(self) -> None:
        """Give back the stream and all memory; may be called twice."""
        if self.stream is None:
            return
        self.use()
        with contextlib.suppress(NqEdgeError):  # a device that failed gives its memory back all the same
            self.synchronize()
        for address in list(self._allocated):
            self.library.nq_cuda_free(address)
        for address in list(self._pinned):
            self.library.nq_cuda_free_pinned(address)
        self._allocated.clear()
        self._pinned.clear()
        self.library.nq_cuda_stream_destroy(self.stream)
        self.stream = None


class Event:
    """A mark in a device's stream: whoever waits for it waits for everything before it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        handle = c_void_p()
        device.call("nq_cuda_event_create", byref(handle))
        self._handle = handle.value

    def record(self) -> None:
        """Put the mark behind everything that the stream holds now."""
        self._device.call("nq_cuda_event_record", self._handle, self._device.stream)

    def wait(self) -> None:
        """Wait until the stream has come past it."""
        self._device.call("nq_cuda_event_synchronize", self._handle)

    def since(self, earlier: Event) -> float:
        """Seconds from another event to this one, both of which are past."""
        passed = c_float(0)
        self._device.call("nq_cuda_event_elapsed", earlier._handle, self._handle, byref(passed))
        return passed.value / 1e3

    def free(self) -> None:
        """Give it back."""
        if self._handle is not None:
            self._device.call("nq_cuda_event_destroy", self._handle)
            self._handle = None
