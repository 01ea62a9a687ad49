# SPDX-License-Identifier: Apache-2.0
"""An engine and its execution contexts as this backend sees them: named tensors, addresses, enqueue.

The seam to TensorRT: `TensorRTEngine` wraps the Python API that TensorRT 10.3 to 11 and TensorRT for RTX share; tests
put an engine in its place that computes the same graph with ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import NqEdgeError

__all__ = ["Context", "Engine", "TensorInfo", "TensorRTEngine"]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32"}
_LARGEST_TENSORS = 1 << 16


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        name: as in the graph.
        is_input: else an output.
        dtype: "float32", "float16", "bfloat16", "int64", "int32", or TensorRT's name of another type.
        shape: sizes; -1 where the profile decides.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]


class Context(Protocol):
    """State of an execution with one optimization profile."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Size of an input.

        Raises:
            NqEdgeError: NQ-ENGINE when the profile does not allow it.
        """
        ...

    def set_address(self, name: str, address: int) -> None:
        """GPU memory of an input or output."""
        ...

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Size of an output, which follows from those of the inputs; -1 where it does not."""
        ...

    def capturable(self, stream: int) -> bool:
        """Whether `enqueue` may be recorded into a CUDA graph now."""
        ...

    def enqueue(self, stream: int) -> None:
        """Queue the computation.

        Raises:
            NqEdgeError: NQ-ENGINE with TensorRT's words when it refuses.
        """
        ...

    def close(self) -> None:
        """Give the context back."""
        ...


class Engine(Protocol):
    """A loaded engine.

    Attributes:
        tensors: all inputs and outputs by name.
        profiles: number of optimization profiles.
    """

    tensors: dict[str, TensorInfo]
    profiles: int

    def profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        """Smallest, most usual and largest shape of an input in a profile."""
        ...

    def alias(self, name: str) -> str | None:
        """The input whose memory an output shares; None when it shares none, or TensorRT does not tell."""
        ...

    def scratch_bytes(self, profile: int) -> int:
        """Memory for activations that a context of this profile needs."""
        ...

    def context(self, profile: int, stream: int, *, scratch: int, scratch_bytes: int) -> Context:
        """A context on a profile with memory for its activations.

        Raises:
            NqEdgeError: NQ-MEMORY or NQ-ENGINE.
        """
        ...

    def close(self) -> None:
        """Give the engine's memory back; its contexts are closed already."""
        ...


class _Context:
    def __init__(self, owner: TensorRTEngine, context: Any) -> None:
        self._owner, self._context = owner, context

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise self._owner.refusal(f"shape {list(shape)} of {name}")

    def set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._owner.refusal(f"the memory of {name}")

    def output_shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self._context.get_tensor_shape(name))

    def capturable(self, stream: int) -> bool:
        # Only TensorRT for RTX compiles while it runs and so has times when a capture would fail.
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._owner.refusal("the step")

    def close(self) -> None:
        self._context = None


class TensorRTEngine:
    """See `Engine`.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        runtime: its Runtime, kept alive here.
        engine: the ICudaEngine.
        log: what TensorRT wrote, newest last; for messages.
        runtime_cache: content of a cache of compiled kernels, for TensorRT for RTX.
    """

    def __init__(self, module: Any, runtime: Any, *, engine: Any, log: list[str], runtime_cache: bytes = b"") -> None:
        self._module, self._runtime, self._engine, self._log = module, runtime, engine, log
        self._cache_content = runtime_cache
        self._cache: Any = None
        self.profiles = int(engine.num_optimization_profiles)
        self.tensors: dict[str, TensorInfo] = {}
        for index in range(min(int(engine.num_io_tensors), _LARGEST_TENSORS)):
            name = engine.get_tensor_name(index)
            kind = str(getattr(engine.get_tensor_dtype(name), "name", engine.get_tensor_dtype(name)))
            is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            if engine.is_shape_inference_io(name):
                kind = f"{kind} in host memory"  # its values decide on shapes; no input of ours does
            self.tensors[name] = TensorInfo(name, is_input, _DTYPES.get(kind, kind), shape)

    def profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        """See `Engine`."""
        return tuple(tuple(int(size) for size in dims) for dims in self._engine.get_tensor_profile_shape(name, profile))

    def alias(self, name: str) -> str | None:
        """See `Engine`."""
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        return None if ask is None else (ask(name) or None)

    def scratch_bytes(self, profile: int) -> int:
        """See `Engine`."""
        name = "get_device_memory_size_for_profile"
        new = getattr(self._engine, f"{name}_v2", None)  # the first 10.x have the older name only
        return int(new(profile) if new is not None else getattr(self._engine, name)(profile))

    def context(self, profile: int, stream: int, *, scratch: int, scratch_bytes: int) -> Context:
        """See `Engine`."""
        self._log.clear()
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        config = self._config(strategy)
        context = self._engine.create_execution_context(strategy if config is None else config)
        if context is None:
            raise self.refusal("an execution context")
        if not context.set_optimization_profile_async(profile, stream):
            raise self.refusal(f"optimization profile {profile}")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, scratch_bytes)
        else:
            context.device_memory = scratch
        return _Context(self, context)

    def _config(self, strategy: Any) -> Any:
        """Settings of a context in TensorRT for RTX; None where there are none."""
        if not hasattr(self._module, "IRuntimeCache"):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # Kernels for the step's fixed shapes at once, not in the background: what is captured stays.
        config.dynamic_shapes_kernel_specialization_strategy = (
            self._module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache_content:
                self._cache.deserialize(self._cache_content)  # refused when it is of another GPU or driver: no harm
        config.set_runtime_cache(self._cache)
        return config

    def close(self) -> None:
        """See `Engine`."""
        self._cache = self._engine = self._runtime = None
        self.tensors = {}

    def refusal(self, what: str) -> NqEdgeError:
        """TensorRT refused `what`: its own last words, as the error to raise."""
        words = "; ".join(self._log[-2:])
        if any(sign in words.lower() for sign in ("out of memory", "outofmemory", "insufficient memory")):
            return NqEdgeError("NQ-MEMORY", f"TensorRT ran out of GPU memory for {what}: {words}")
        return NqEdgeError("NQ-ENGINE", f"TensorRT refuses {what}: {words or 'it does not say why'}")
