# SPDX-License-Identifier: Apache-2.0
"""The operator's CUDA kernel: loading, tiles, scratch memory and refusals, without a GPU.

The adapter is built once more for the CPU provider, over a stand-in that computes what the CUDA library would. What the
real kernels compute is tested in tests/plugins/cuda, and the two together by tests/plugins/cuda/test_onnxruntime.py.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.plugins import one_node
from tests.plugins.one_node import BFLOAT16, FLOAT16, FLOAT32


@pytest.fixture(scope="module")
def stand_in(host_build: Path) -> str:
    return str(host_build / "tests" / "libnanoquant_ort_stand_in.so")


def error(layer: one_node.Layer, library: str, **options: object) -> str:
    with pytest.raises(Exception, match="NanoQuantLinear") as caught:
        one_node.make_session(one_node.make_model(layer, **options), library)  # type: ignore[arg-type]
    return str(caught.value)


def to_tiles(words: np.ndarray, columns: int) -> np.ndarray:
    """Layout 1 as docs/OPERATOR.md describes it, word by word."""
    rows, width = words.shape
    tiles = np.zeros((-(-rows // 16), 128 * -(-columns // 256)), np.int32)
    for row in range(rows):
        for word in range(width):
            value = int(np.uint32(words[row, word]))
            left = columns - 32 * word
            value &= 0xFFFFFFFF if left >= 32 else 2**left - 1
            lane = row % 8 * 4 + word % 4
            place = word // 8 * 128 + 4 * lane + row % 16 // 8 + 2 * (word % 8 // 4)
            tiles[row // 16, place] = np.uint32(value).view(np.int32)
    return tiles


def in_tiles(layer: one_node.Layer) -> one_node.Layer:
    weights = {
        "v_packed": to_tiles(layer.weights["v_packed"], layer.n),
        "u_packed": to_tiles(layer.weights["u_packed"], layer.rank),
    }
    return layer.changed(layout=1).with_weights(**weights)


@pytest.mark.parametrize("tiled", [False, True], ids=["layout0", "layout1"])
@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=["f16", "bf16"])
@pytest.mark.parametrize("shape", [(64, 40, 72), (70, 33, 51), (257, 300, 8), (1, 1, 40)], ids=str)
def test_it_computes(shape: tuple[int, int, int], kind: int, tiled: bool, stand_in: str) -> None:
    for index, scale in enumerate((FLOAT32, FLOAT16, BFLOAT16)):
        layer = one_node.make_layer(*shape, kind, scale, mid=index != 1, bias=index != 2, garbage=not tiled)
        session = one_node.make_session(one_node.make_model(in_tiles(layer) if tiled else layer), stand_in)
        # The second run uses what the first one kept; odd sizes go through spaced copies.
        for dims in ((1, 1), (1, 1), (2, 3), (0, 5)):
            x = one_node.make_x(layer, *dims, seed=index)
            # Rounding a lone bfloat16 costs up to 2^-8.
            assert layer.relative_error(x, one_node.run(session, layer, x)) <= (1e-3 if kind == FLOAT16 else 4.5e-3)


def test_a_buffer_off_by_two_bytes_is_copied(stand_in: str) -> None:
    layer = one_node.make_layer(64, 40, 72, FLOAT16)
    session = one_node.make_session(one_node.make_model(layer), stand_in)
    x = one_node.make_x(layer, 2, 3)
    memory = np.zeros(x.size + 9, np.float16)
    start = 1 if memory.ctypes.data % 16 == 0 else 0
    moved = memory[start : start + x.size].reshape(x.shape)
    moved[:] = x
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float16, x.shape, moved.ctypes.data)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    assert layer.relative_error(x, binding.get_outputs()[0].numpy()) <= 1e-3


def test_first_runs_at_once_make_the_tiles_once(stand_in: str) -> None:
    layer = one_node.make_layer(300, 200, 120, FLOAT16)
    x = one_node.make_x(layer, 1, 1)
    for _ in range(5):
        session = one_node.make_session(one_node.make_model(layer), stand_in)
        found: list[float] = []

        def work(session: onnxruntime.InferenceSession = session, found: list[float] = found) -> None:
            found.append(layer.relative_error(x, one_node.run(session, layer, x)))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(found) == 4
        assert max(found) <= 1e-3


def test_float32_is_refused_with_a_way_out(stand_in: str) -> None:
    message = error(one_node.make_layer(64, 40, 72, FLOAT32), stand_in)
    assert "X is float32" in message
    assert "--dtype float16" in message


def test_weights_must_be_constant(stand_in: str) -> None:
    message = error(one_node.make_layer(64, 40, 72, FLOAT16), stand_in, weights_as_inputs=True)
    assert "input 1 is not a constant initializer" in message


def test_shapes_of_layout_1_are_checked(stand_in: str) -> None:
    layer = one_node.make_layer(300, 40, 72, FLOAT16)
    assert "v_packed is 40 x 10 words" in error(layer.changed(layout=1), stand_in)
    good = in_tiles(layer)
    short = good.with_weights(u_packed=good.weights["u_packed"][:-1])
    assert "need 5 x 128" in error(short, stand_in)


def test_the_cpu_kernel_refuses_layout_1(library: str) -> None:
    message = error(in_tiles(one_node.make_layer(64, 40, 72, FLOAT16)), library)
    assert "layout 1 is for GPUs" in message
    assert "CUDA provider" in message


def test_a_missing_cuda_library_is_told(stand_in: str, tmp_path: Path) -> None:
    alone = shutil.copy(stand_in, tmp_path)
    message = error(one_node.make_layer(64, 40, 72, FLOAT16), str(alone))
    assert "the CUDA kernels cannot be loaded" in message
    assert str(tmp_path / "libnq_stand_in_cuda.so") in message
    assert "CPU provider" in message


def test_another_version_of_the_cuda_library_is_refused(stand_in: str, library: str, tmp_path: Path) -> None:
    alone = shutil.copy(stand_in, tmp_path)
    shutil.copy(library, tmp_path / "libnq_stand_in_cuda.so")
    message = error(one_node.make_layer(64, 40, 72, FLOAT16), str(alone))
    assert "is not of version" in message


def test_a_gpu_without_code_is_told(stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_STAND_IN_NO_KERNEL", "1")
    message = error(one_node.make_layer(64, 40, 72, FLOAT16), stand_in)
    assert "no kernel for this GPU" in message
