# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime operator on a GPU, through onnxruntime-gpu; skipped where that is not installed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.cuda import capi

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.plugins import one_node  # noqa: E402
from tests.plugins.test_operator_cuda import in_tiles  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
    ),
]
CUDA = "CUDAExecutionProvider"
LIMITS = {one_node.FLOAT16: 1e-3, one_node.BFLOAT16: 2.5e-3}


@pytest.fixture(scope="module")
def operators(cuda: capi.Cuda) -> str:
    """libnanoquant_ort.so, which must lie beside the CUDA library."""
    path = cuda.path.parent / "libnanoquant_ort.so"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set NQ_EDGE_NATIVE_DIR to an installed build")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return str(path)


def open_cuda(layer: one_node.Layer, operators: str, options: dict[str, str] | None = None, **more: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.register_custom_ops_library(operators)
    for name, value in more.items():
        setattr(settings, name, value)
    model = one_node.make_model(layer)
    session = onnxruntime.InferenceSession(model, settings, [(CUDA, options or {}), "CPUExecutionProvider"])
    assert session.get_providers()[0] == CUDA, "onnxruntime fell back to the CPU"
    return session


@pytest.mark.parametrize("tiled", [False, True], ids=["layout0", "layout1"])
@pytest.mark.parametrize("kind", [one_node.FLOAT16, one_node.BFLOAT16], ids=["f16", "bf16"])
@pytest.mark.parametrize("shape", [(576, 376, 1536), (1536, 424, 576), (130, 257, 201), (576, 65, 193)], ids=str)
def test_it_computes(shape: tuple[int, int, int], kind: int, tiled: bool, operators: str) -> None:
    scales = (one_node.FLOAT32, one_node.FLOAT16, one_node.BFLOAT16)
    for index, scale in enumerate(scales):
        layer = one_node.make_layer(*shape, kind, scale, mid=index != 1, bias=index != 2, garbage=not tiled)
        session = open_cuda(in_tiles(layer) if tiled else layer, operators)
        for dims in ((1, 1), (1, 1), (2, 4), (3, 43), (1, 0)):
            x = one_node.make_x(layer, *dims, seed=index)
            assert layer.relative_error(x, one_node.run(session, layer, x)) <= LIMITS[kind], (scale, dims)


def test_the_node_runs_on_the_gpu(operators: str, tmp_path: Path) -> None:
    layer = one_node.make_layer(576, 65, 192, one_node.FLOAT16)
    session = open_cuda(layer, operators, enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    one_node.run(session, layer, one_node.make_x(layer, 1, 1))
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e["args"] for e in events if e.get("cat") == "Node" and e["args"].get("op_name") == "NanoQuantLinear"]
    assert nodes
    assert {node["provider"] for node in nodes} == {CUDA}


def test_a_cuda_graph_replays(operators: str) -> None:
    layer = one_node.make_layer(576, 376, 1536, one_node.FLOAT16)
    plain, graphed = (open_cuda(layer, operators, options) for options in ({}, {"enable_cuda_graph": "1"}))
    x = onnxruntime.OrtValue.ortvalue_from_numpy(one_node.make_x(layer, 1, 1), "cuda", 0)
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 1536), np.float16), "cuda", 0)
    binding = graphed.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    for seed in range(4):
        given = one_node.make_x(layer, 1, 1, seed=seed)
        x.update_inplace(given)
        binding.synchronize_inputs()
        graphed.run_with_iobinding(binding)
        binding.synchronize_outputs()
        np.testing.assert_array_equal(y.numpy(), one_node.run(plain, layer, given))


def test_threads_share_a_session(operators: str) -> None:
    layer = one_node.make_layer(1536, 424, 576, one_node.FLOAT16)
    inputs = [one_node.make_x(layer, 1, rows, seed=rows) for rows in (1, 3, 17, 40)]
    for _ in range(3):
        session = open_cuda(layer, operators)
        errors: list[float] = []

        def work(x: np.ndarray, session: Any = session, errors: list[float] = errors) -> None:
            errors.extend(layer.relative_error(x, one_node.run(session, layer, x)) for _ in range(20))

        workers = [threading.Thread(target=work, args=(x,)) for x in inputs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(errors) == 80
        assert max(errors) <= 1e-3


def test_float32_is_refused(operators: str) -> None:
    with pytest.raises(Exception, match="X is float32"):
        open_cuda(one_node.make_layer(64, 40, 72, one_node.FLOAT32), operators)
