# SPDX-License-Identifier: Apache-2.0
"""The wrapper of TensorRT's Python objects, on objects that behave as the documentation says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.tensorrt.engine import TensorRTEngine
from nanoquant_edge.runtimes.tensorrt.execution import as_float32


class _Context:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.good = True
        self.lacks = {"is_stream_capturable"}

    def __getattr__(self, name: str) -> Any:
        if name in self.lacks:
            raise AttributeError(name)

        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return self.good

        return call


class _EarlyEngine:
    num_io_tensors = 3
    num_optimization_profiles = 2

    def __init__(self, context: Any = None) -> None:
        self.made: list[Any] = []
        self._context = context

    def get_tensor_name(self, index: int) -> str:
        return ("input_ids", "logits", "odd")[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"input_ids": "INT64", "logits": "FLOAT", "odd": "FP8"}[name])

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "input_ids" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 7)

    def is_shape_inference_io(self, name: str) -> bool:
        return name == "odd"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, profile), (2, profile), (3, profile)]

    def get_device_memory_size_for_profile(self, profile: int) -> int:
        return 7

    def create_execution_context(self, how: Any) -> Any:
        self.made.append(how)
        return self._context


class _Engine(_EarlyEngine):
    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 100 * (profile + 1)


_MODULE = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="managed"),
)


def test_what_a_standard_engine_says() -> None:
    engine = TensorRTEngine(_MODULE, None, engine=_Engine(), log=[])
    assert engine.profiles == 2 and engine.alias("logits") is None
    assert {name: (value.is_input, value.dtype, value.shape) for name, value in engine.tensors.items()} == {
        "input_ids": (True, "int64", (-1, 7)),
        "logits": (False, "float32", (-1, 7)),
        "odd": (False, "FP8 in host memory", (-1, 7)),
    }
    assert engine.profile_shape("input_ids", 1) == ((1, 1), (2, 1), (3, 1))
    assert engine.scratch_bytes(1) == 200
    engine.close()
    assert engine.tensors == {}


def test_a_context_gets_its_profile_and_our_memory() -> None:
    context, log = _Context(), []  # type: tuple[_Context, list[str]]
    native = _Engine(context)
    engine = TensorRTEngine(_MODULE, None, engine=native, log=log)
    made = engine.context(1, 99, scratch=4096, scratch_bytes=200)
    assert native.made == ["managed"]
    assert context.calls == [("set_optimization_profile_async", 1, 99), ("set_device_memory", 4096, 200)]
    made.set_shape("input_ids", (1, 1))
    made.set_address("input_ids", 512)
    made.enqueue(99)
    context.get_tensor_shape = lambda name: [1, 1, 7]  # type: ignore[method-assign]
    assert made.output_shape("logits") == (1, 1, 7)
    assert context.calls[2:] == [
        ("set_input_shape", "input_ids", (1, 1)), ("set_tensor_address", "input_ids", 512), ("execute_async_v3", 99),
    ]  # fmt: skip
    assert made.capturable(99)
    context.good = False
    log[:] = ["Error Code 3: API Usage Error (outside of the profile)"]
    for action in (lambda: made.set_shape("x", (9,)), lambda: made.set_address("x", 1), lambda: made.enqueue(99)):
        with pytest.raises(NqEdgeError, match="outside of the profile") as caught:
            action()
        assert caught.value.code == "NQ-ENGINE"
    log[:] = ["Error Code 2: OutOfMemory (no further information)"]
    with pytest.raises(NqEdgeError) as caught:
        made.enqueue(99)
    assert caught.value.code == "NQ-MEMORY"


def test_an_early_tensorrt_10_has_older_names() -> None:
    context = _Context()
    context.lacks.add("set_device_memory")
    engine = TensorRTEngine(_MODULE, None, engine=_EarlyEngine(context), log=[])
    assert engine.scratch_bytes(0) == 7
    engine.context(0, 99, scratch=4096, scratch_bytes=200)
    assert context.device_memory == 4096


def test_a_context_that_tensorrt_refuses() -> None:
    with pytest.raises(NqEdgeError, match="an execution context: it does not say why") as caught:
        TensorRTEngine(_MODULE, None, engine=_Engine(None), log=[]).context(0, 99, scratch=4096, scratch_bytes=200)
    assert caught.value.code == "NQ-ENGINE"


def test_an_rtx_context_shares_one_cache_of_compiled_kernels() -> None:
    contents, caches = [], []

    def cache() -> Any:
        made = SimpleNamespace(deserialize=contents.append)
        caches.append(made)
        return made

    def config() -> Any:
        used: list[Any] = []
        return SimpleNamespace(
            set_execution_context_allocation_strategy=used.append,
            create_runtime_cache=cache,
            set_runtime_cache=used.append,
            used=used,
        )

    raw = _Engine(_Context())
    raw.create_runtime_config = config  # type: ignore[attr-defined]
    strategies = SimpleNamespace(EAGER="eager")
    rtx = SimpleNamespace(**vars(_MODULE), IRuntimeCache=object, DynamicShapesKernelSpecializationStrategy=strategies)
    engine = TensorRTEngine(rtx, None, engine=raw, log=[], runtime_cache=b"kernels")
    engine.context(0, 99, scratch=4096, scratch_bytes=200)
    engine.context(1, 99, scratch=4096, scratch_bytes=200)
    assert contents == [b"kernels"] and len(caches) == 1
    assert [made.used for made in raw.made] == [["managed", caches[0]]] * 2
    assert raw.made[0].dynamic_shapes_kernel_specialization_strategy == "eager"


def test_the_attributes_that_are_used_exist_in_the_real_tensorrt_for_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    used = {
        "ICudaEngine": (
            "num_io_tensors num_optimization_profiles get_tensor_name get_tensor_dtype get_tensor_mode "
            "get_tensor_shape get_tensor_profile_shape get_aliased_input_tensor create_execution_context "
            "get_device_memory_size_for_profile_v2 create_runtime_config"
        ),
        "IExecutionContext": (
            "set_input_shape set_tensor_address get_tensor_shape is_stream_capturable execute_async_v3 "
            "set_device_memory set_optimization_profile_async"
        ),
        "IRuntimeConfig": (
            "create_runtime_cache set_runtime_cache set_execution_context_allocation_strategy "
            "dynamic_shapes_kernel_specialization_strategy"
        ),
        "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
        "IPluginRegistry": "get_creator load_library",
    }
    for kind, names in used.items():
        for name in names.split():
            assert hasattr(getattr(rtx, kind), name), (kind, name)
    for kind in ("FLOAT", "HALF", "BF16", "INT64", "INT32"):
        assert getattr(rtx.DataType, kind).name == kind


def test_bytes_become_numbers() -> None:
    numbers = np.array([[1.5, -2.0, 0.25]], dtype=np.float32)
    assert as_float32(numbers.view(np.uint8).reshape(-1), "float32", (1, 3)).tolist() == numbers.tolist()
    half = numbers.astype(np.float16).view(np.uint8).reshape(-1)
    assert as_float32(half, "float16", (3,)).tolist() == [1.5, -2, 0.25]
    upper = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    assert as_float32(upper.view(np.uint8).reshape(-1), "bfloat16", (1, 3)).tolist() == numbers.tolist()
