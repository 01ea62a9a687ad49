# SPDX-License-Identifier: Apache-2.0
"""`CudaDevice` over an imitated CUDA runtime with cuda-python's calling convention: (error, result...)."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.tensorrt.device import CudaDevice, Rows


class _Error(int):
    name: str

    def __new__(cls, value: int, name: str) -> _Error:
        error = super().__new__(cls, value)
        error.name = name
        return error


_OK = _Error(0, "cudaSuccess")


class FakeCuda:
    """Device memory is host memory; everything is done at once. `fail` names calls that fail, and how."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, **fail: tuple[int, str]) -> None:
        self.fail = fail
        self.calls: list[str] = []
        self.blocks: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return (_Error(*self.fail[name]), None)
            result = getattr(self, f"do_{name}", lambda *_: ())(*arguments)
            return (_OK, *(result if isinstance(result, tuple) else (result,)))

        return call

    def do_cudaGetDeviceProperties(self, _index: int) -> Any:
        return SimpleNamespace(name=b"GeForce", major=8, minor=6)

    def do_cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == 1
        return 99

    def do_cudaMemGetInfo(self) -> tuple[int, int]:
        return 5, 10

    def do_cudaMalloc(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    do_cudaMallocHost = do_cudaMalloc

    def do_cudaFree(self, address: int) -> tuple[()]:
        del self.blocks[address]
        return ()

    do_cudaFreeHost = do_cudaFree

    def do_cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[()]:
        assert stream == 99
        ctypes.memset(address, value, size)
        return ()

    def do_cudaMemcpyAsync(self, to: int, source: int, size: int, _kind: int, stream: int) -> tuple[()]:
        assert stream == 99
        ctypes.memmove(to, source, size)
        return ()

    def do_cudaMemcpy2DAsync(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, kind: int, stream: int
    ) -> tuple[()]:
        assert (kind, stream) == (3, 99)
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return ()

    def do_cudaStreamEndCapture(self, _stream: int) -> str:
        return "graph"

    def do_cudaGraphInstantiate(self, graph: str, flags: int) -> str:
        assert (graph, flags) == ("graph", 0)
        return "executable"

    def do_cudaGetErrorString(self, _error: Any) -> bytes:
        return b"words of CUDA"


def test_bytes_go_up_across_and_down() -> None:
    cuda = FakeCuda()
    device = CudaDevice(cuda)
    assert (device.name, device.compute_capability, device.memory()) == ("GeForce", "8.6", (5, 10))
    a, b = device.allocate(48), device.allocate(48)
    device.clear(a, 48)
    device.upload(b, np.arange(6, dtype=np.int64))
    device.copy_rows(Rows(a + 8, 16), Rows(b, 8), width=8, count=3)  # three elements, every other place
    found = device.host_array(48)
    device.download(found, a)
    assert found.view(np.int64).tolist() == [0, 0, 0, 1, 0, 2]
    device.free(a)
    device.free(a)
    device.close()
    device.close()
    assert cuda.blocks == {} and cuda.calls.count("cudaStreamDestroy") == 1


def test_a_graph_is_captured_instantiated_launched_and_destroyed() -> None:
    cuda = FakeCuda()
    device = CudaDevice(cuda)
    device.begin_capture()
    graph = device.end_capture(keep=True)
    assert graph == "executable"
    device.launch(graph)
    device.release_graph(graph)
    device.begin_capture()
    assert device.end_capture(keep=False) is None
    names = [name for name in cuda.calls if "Graph" in name]
    assert names == [
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaGraphExecDestroy",
        "cudaGraphDestroy",
    ]


@pytest.mark.parametrize(
    ("call", "error", "code", "words"),
    [
        ("cudaSetDevice", (35, "cudaErrorInsufficientDriver"), "NQ-CUDA", "needs an NVIDIA GPU and its driver"),
        ("cudaSetDevice", (100, "cudaErrorNoDevice"), "NQ-CUDA", "needs an NVIDIA GPU"),
        ("cudaSetDevice", (101, "cudaErrorInvalidDevice"), "NQ-CUDA", "cudaErrorInvalidDevice, words of CUDA"),
    ],
)
def test_without_a_usable_gpu(call: str, error: tuple[int, str], code: str, words: str) -> None:
    cuda = FakeCuda(**{call: error})
    cuda.fail.pop("cudaGetErrorString", None)
    with pytest.raises(NqEdgeError, match=words) as caught:
        CudaDevice(cuda)
    assert caught.value.code == code


def test_failures_while_it_runs() -> None:
    cuda = FakeCuda(cudaMalloc=(2, "cudaErrorMemoryAllocation"), cudaStreamSynchronize=(700, "cudaErrorIllegalAddress"))
    device = CudaDevice(cuda)
    with pytest.raises(NqEdgeError, match=r"GeForce has no 3\.0 MB free") as caught:
        device.allocate(3_000_000)
    assert caught.value.code == "NQ-MEMORY"
    with pytest.raises(NqEdgeError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress") as caught:
        device.synchronize()
    assert caught.value.code == "NQ-CUDA"
    device.close()  # gives back what it can all the same
    assert cuda.calls[-1] == "cudaStreamDestroy"


def test_a_thread_is_told_which_gpu_it_uses() -> None:
    class Remembering(FakeCuda):
        """Has a current GPU for each thread, 0 until told otherwise."""

        def __init__(self) -> None:
            super().__init__()
            self.current = threading.local()

        def do_cudaSetDevice(self, index: int) -> tuple[()]:
            self.current.index = index
            return ()

    cuda, seen = Remembering(), []  # type: ignore[var-annotated]
    device = CudaDevice(cuda, 2)

    def work() -> None:
        seen.append(getattr(cuda.current, "index", 0))
        device.use()
        seen.append(cuda.current.index)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (cuda.current.index, seen) == (2, [0, 2])
