# SPDX-License-Identifier: Apache-2.0
"""The GPU as this backend sees it: addresses, copies, one stream, captured graphs.

`Device` is the seam: everything above it is bookkeeping that tests run on an imitation in host memory. `CudaDevice` is
the real one, on cuda-python's bindings of the CUDA runtime (CUDA Runtime API, sections 6.9, 6.10 and 6.30).
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import NqEdgeError

__all__ = ["CudaDevice", "Device", "Rows"]


class Rows(NamedTuple):
    """Rows in GPU memory: the address of the first one, and the bytes from row to row."""

    address: int
    pitch: int


class Device(Protocol):
    """A GPU with one stream. Work is queued in order; only `download` and `synchronize` wait for it.

    Attributes:
        name: for messages.
        compute_capability: such as "8.6".
        stream: handle that TensorRT enqueues on.
    """

    name: str
    compute_capability: str
    stream: int

    def use(self) -> None:
        """Make it the calling thread's GPU: memory comes from there, and work may be queued."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        ...

    def allocate(self, size: int) -> int:
        """Address of `size` bytes, a multiple of 256.

        Raises:
            NqEdgeError: NQ-MEMORY when they are not free.
        """
        ...

    def free(self, address: int) -> None:
        """Give memory of `allocate` back."""
        ...

    def host_array(self, size: int) -> np.ndarray:
        """uint8 [size] that downloads reach without a detour; lives as long as the device."""
        ...

    def clear(self, address: int, size: int) -> None:
        """Fill with zero bytes."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the GPU; the array may change as soon as this returns."""
        ...

    def copy_rows(self, target: Rows, source: Rows, *, width: int, count: int) -> None:
        """Copy `count` rows of `width` bytes inside the GPU."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the GPU, after all queued work."""
        ...

    def synchronize(self) -> None:
        """Wait for all queued work."""
        ...

    def begin_capture(self) -> None:
        """From here on work is recorded, not done."""
        ...

    def end_capture(self, keep: bool) -> Any:
        """The recorded work as a graph, or None and no graph when `keep` is false; recording is over either way."""
        ...

    def launch(self, graph: Any) -> None:
        """Queue a graph."""
        ...

    def release_graph(self, graph: Any) -> None:
        """Give a graph's memory back."""
        ...

    def close(self) -> None:
        """Give everything back that is still held. May be called twice."""
        ...


class CudaDevice:
    """See `Device`.

    Args:
        cuda: the module cuda.bindings.runtime.
        index: which GPU, in CUDA's order.

    Raises:
        NqEdgeError: NQ-CUDA without a usable GPU or driver.
    """

    def __init__(self, cuda: Any, index: int = 0) -> None:
        self._cuda, self._index = cuda, index
        self._held: set[int] = set()
        self._pinned: list[int] = []
        self.stream = 0
        self.use()
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name
        self.name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.stream = int(self._call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking))

    def use(self) -> None:
        """See `Device`; CUDA remembers it for each thread."""
        self._call("cudaSetDevice", self._index)

    def memory(self) -> tuple[int, int]:
        """See `Device`."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """See `Device`."""
        address = int(self._call("cudaMalloc", max(size, 1), wanted=size))
        self._held.add(address)
        return address

    def free(self, address: int) -> None:
        """See `Device`."""
        if address in self._held:
            self._held.remove(address)
            self._call("cudaFree", address)

    def host_array(self, size: int) -> np.ndarray:
        """See `Device`; page-locked memory."""
        address = int(self._call("cudaMallocHost", max(size, 1)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def clear(self, address: int, size: int) -> None:
        """See `Device`."""
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def upload(self, address: int, array: np.ndarray) -> None:
        """See `Device`. From pageable memory the call returns once the bytes are staged (API synchronization)."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def copy_rows(self, target: Rows, source: Rows, *, width: int, count: int) -> None:
        """See `Device`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", *target, *source, width, count, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """See `Device`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)
        self.synchronize()

    def synchronize(self) -> None:
        """See `Device`."""
        self._call("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """See `Device`; other threads of the process are not disturbed."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)

    def end_capture(self, keep: bool) -> Any:
        """See `Device`."""
        if not keep:
            error, graph = self._cuda.cudaStreamEndCapture(self.stream)
            if not int(error) and graph:
                self._call("cudaGraphDestroy", graph)
            return None
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """See `Device`."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def release_graph(self, graph: Any) -> None:
        """See `Device`."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """See `Device`."""
        if not self.stream:
            return
        stream, self.stream = self.stream, 0
        self._cuda.cudaStreamSynchronize(stream)  # an error that came up before must not keep memory from going back
        for address in self._held:
            self._cuda.cudaFree(address)
        for address in self._pinned:
            self._cuda.cudaFreeHost(address)
        self._held, self._pinned = set(), []
        self._cuda.cudaStreamDestroy(stream)

    def _call(self, function: str, *arguments: Any, wanted: int = 0) -> Any:
        """Call the CUDA runtime; returns its one result, or the tuple of several."""
        error, *values = getattr(self._cuda, function)(*arguments)
        if int(error):
            raise self._failure(function, error, wanted)
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def _failure(self, function: str, error: Any, wanted: int) -> NqEdgeError:
        name = getattr(error, "name", str(error))
        if name == "cudaErrorMemoryAllocation":
            return NqEdgeError("NQ-MEMORY", f"{self.name} has no {wanted / 1e6:.1f} MB free ({function}).")
        if name in ("cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInitializationError"):
            return NqEdgeError(
                "NQ-CUDA",
                f"a TensorRT engine needs an NVIDIA GPU and its driver, and there is none that works ({name}).",
                "Check with nvidia-smi (on a Jetson: that JetPack is installed). For a driver of CUDA 12, such as "
                "JetPack 6's, run pip install 'cuda-python<13'. On a CPU use a bundle of `nq-edge export --to onnx`.",
            )
        text = self._cuda.cudaGetErrorString(error)[1]
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        return NqEdgeError("NQ-CUDA", f"{function} failed: {name}, {text}.")
