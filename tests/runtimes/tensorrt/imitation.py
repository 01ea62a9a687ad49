# SPDX-License-Identifier: Apache-2.0
"""A GPU in host memory and an engine that computes with ONNX Runtime, behind the seams of runtimes/tensorrt.

The imitation keeps TensorRT's and CUDA's rules, so that breaking one fails a test: memory is reached by address and
must have been allocated; addresses are multiples of 256; shapes must fit the profile; a capture before a plain enqueue
with the same shapes fails; what is captured is recorded, not done, and replays with the shapes and addresses of then.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.onnx_outputs import FOLDER_OPTION, with_extra_outputs
from nanoquant_edge.runtimes.tensorrt.device import Rows
from nanoquant_edge.runtimes.tensorrt.engine import TensorInfo
from nanoquant_edge.system.native import ort_library_path

#: What fresh memory holds: NaN in every float type.
_POISON = 0xFF
_TYPES: dict[str, Any] = {
    "int64": np.int64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_ORT_TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16"}


class HostDevice:
    """See `Device`. Counts what it does, so that tests can see what travels."""

    def __init__(self, total: int = 1 << 30) -> None:
        self.name, self.compute_capability, self.stream = "Imitation", "8.6", 7
        self.total, self.used, self.peak = total, 0, 0
        self._blocks: dict[int, tuple[np.ndarray, int]] = {}
        self._recording: list[Callable[[], None]] | None = None
        #: Threads that have made it theirs.
        self.users = {threading.get_ident()}
        #: Address and size of every fill with zeros.
        self.cleared: list[tuple[int, int]] = []
        self.uploaded = self.launches = self.captures = self.graphs = self.copies = 0
        self.closed = False

    def use(self) -> None:
        self.users.add(threading.get_ident())

    def memory(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def allocate(self, size: int) -> int:
        assert self._recording is None, "memory is not allocated while work is recorded"
        assert threading.get_ident() in self.users, "the thread's GPU is another"
        if self.used + size > self.total:
            raise NqEdgeError("NQ-MEMORY", f"{self.name} has no {size / 1e6:.1f} MB free (cudaMalloc).")
        block = np.full(size + 256, _POISON, dtype=np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self._blocks[address] = (block, size)
        self.used += size
        self.peak = max(self.peak, self.used)
        return address

    def free(self, address: int) -> None:
        block, size = self._blocks.pop(address)
        block[:] = _POISON
        self.used -= size

    def view(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address, which must lie in one allocation."""
        for start, (_, held) in self._blocks.items():
            if start <= address and address + size <= start + held:
                return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        raise AssertionError(f"{size} bytes at {address:#x} are in no allocation")

    def host_array(self, size: int) -> np.ndarray:
        return np.zeros(size, dtype=np.uint8)

    def do(self, work: Callable[[], None]) -> None:
        """Do it, or record it."""
        assert not self.closed and threading.get_ident() in self.users
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def clear(self, address: int, size: int) -> None:
        self.cleared.append((address, size))
        self.do(lambda: self.view(address, size).fill(0))

    def upload(self, address: int, array: np.ndarray) -> None:
        assert self._recording is None and array.flags.c_contiguous
        self.uploaded += array.nbytes
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def copy_rows(self, target: Rows, source: Rows, *, width: int, count: int) -> None:
        self.copies += 1

        def work() -> None:
            for row in range(count):
                content = self.view(source.address + row * source.pitch, width).copy()
                self.view(target.address + row * target.pitch, width)[:] = content

        self.do(work)

    def download(self, array: np.ndarray, address: int) -> None:
        assert self._recording is None and array.flags.c_contiguous
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)

    def synchronize(self) -> None:
        assert self._recording is None

    def begin_capture(self) -> None:
        assert self._recording is None
        self._recording = []

    def end_capture(self, keep: bool) -> Any:
        recorded, self._recording = self._recording, None
        assert recorded is not None
        self.captures += 1
        self.graphs += keep
        return recorded if keep else None

    def launch(self, graph: Any) -> None:
        self.launches += 1
        for work in graph:
            work()

    def release_graph(self, graph: Any) -> None:
        graph.clear()
        self.graphs -= 1

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def close(self) -> None:
        self.closed = True


class OrtEngine:
    """See `Engine`: the graph of an ONNX bundle, its cache fixed to the engine bundle's capacity."""

    def __init__(self, device: HostDevice, bundle: Bundle, graph_folder: Path) -> None:
        assert bundle.engine is not None
        self.info, self.device, self._vocab = bundle.engine, device, bundle.vocab_size
        self.enqueued = 0
        self.capturable = True
        self.fail_with: str | None = None
        self.fail_in_capture = False
        self.output_sizes: dict[str, tuple[int, ...]] = {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.register_custom_ops_library(str(ort_library_path()))
        options.add_session_config_entry(FOLDER_OPTION, str(graph_folder))
        model = with_extra_outputs(graph_folder / "model.onnx", self.info.debug_outputs, bundle.dtype)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.tensors = {}
        sizes = {"capacity": self.info.kv.capacity}
        for values, is_input in ((self.session.get_inputs(), True), (self.session.get_outputs(), False)):
            for value in values:
                shape = tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in value.shape)
                if value.name in self.info.debug_outputs:
                    shape = (-1, -1, bundle.source_model["hidden_size"])
                self.tensors[value.name] = TensorInfo(value.name, is_input, _ORT_TYPES[value.type], shape)
        self.profiles = len(self.info.profiles)
        self.contexts = 0

    def profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        (spans,) = [value for value in self.info.profiles.values() if value.index == profile]
        kv = self.info.kv
        second = {
            "input_ids": spans.sequence,
            "attention_mask": spans.total,
            "logits_indices": spans.positions,
        }.get(name)
        rest = [second] if second else [(size,) * 3 for size in (kv.heads, kv.capacity, kv.head_dim)]
        return tuple(tuple(span[kind] for span in (spans.batch, *rest)) for kind in range(3))

    def alias(self, name: str) -> str | None:
        return f"past_key_values.{name.removeprefix('present.')}" if self.info.kv.in_place else None

    def feeds(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph computes from; another engine may take its inputs otherwise."""
        return feeds

    @property
    def outputs(self) -> list[str]:
        return [name for name, tensor in self.tensors.items() if not tensor.is_input]

    def scratch_bytes(self, profile: int) -> int:
        return 1000 + profile

    def context(self, profile: int, stream: int, *, scratch: int, scratch_bytes: int) -> OrtContext:
        assert stream == self.device.stream and scratch_bytes >= self.scratch_bytes(profile)
        self.device.view(scratch, scratch_bytes)
        self.contexts += 1
        return OrtContext(self, profile)

    def close(self) -> None:
        assert self.contexts == 0, "contexts go before their engine"


class OrtContext:
    """See `Context`."""

    def __init__(self, engine: OrtEngine, profile: int) -> None:
        self._engine, self._profile = engine, profile
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._settled = False

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert not self._engine.device.recording
        low, _, high = self._engine.profile_shape(name, self._profile)
        good = len(shape) == len(low)
        if not (good and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))):
            raise NqEdgeError("NQ-ENGINE", f"TensorRT refuses shape {list(shape)} of {name}: {low} to {high}")
        self._shapes[name], self._settled = shape, False

    def set_address(self, name: str, address: int) -> None:
        assert name in self._engine.tensors and address and address % 256 == 0, (name, address)
        self._addresses[name], self._settled = address, False

    def output_shape(self, name: str) -> tuple[int, ...]:
        batch, sequence = self._shapes["input_ids"]
        positions = self._shapes["logits_indices"][1]
        known = self._engine.output_sizes.get(name)
        if known is not None:
            return known
        shape = self._engine.tensors[name].shape
        if name == "logits":
            return (batch, positions, shape[2])
        return (batch, *(sequence if size == -1 else size for size in shape[1:]))

    def capturable(self, stream: int) -> bool:
        return self._engine.capturable

    def enqueue(self, stream: int) -> None:
        engine, device = self._engine, self._engine.device
        assert stream == device.stream
        if engine.fail_with:
            raise NqEdgeError("NQ-ENGINE", engine.fail_with)
        assert set(self._addresses) == set(engine.tensors), set(engine.tensors) ^ set(self._addresses)
        assert set(self._shapes) == {name for name, tensor in engine.tensors.items() if tensor.is_input}
        if engine.fail_in_capture and device.recording:
            raise NqEdgeError("NQ-ENGINE", "TensorRT refuses the step: not permitted when stream is capturing")
        assert self._settled or not device.recording, "the first enqueue with new shapes is not captured"
        self._settled = True
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        device.do(lambda: self._compute(shapes, addresses))

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine, device = self._engine, self._engine.device
        engine.enqueued += 1

        def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
            kind = np.dtype(_TYPES[engine.tensors[name].dtype])
            return device.view(addresses[name], int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)

        # Inputs are read before outputs are written: the cache's slots keep what was there.
        feeds = {name: array(name, shape).copy() for name, shape in shapes.items()}
        for name, found in zip(engine.outputs, engine.session.run(engine.outputs, engine.feeds(feeds)), strict=True):
            array(name, found.shape)[...] = found

    def close(self) -> None:
        self._engine.contexts -= 1
