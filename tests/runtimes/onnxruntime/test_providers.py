# SPDX-License-Identifier: Apache-2.0
"""Choosing where ONNX Runtime computes: what is refused, with which words, and the cache on a GPU with a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.kv_layout import KvLayout
from nanoquant_edge.runtimes import OnnxRuntimeBackend
from nanoquant_edge.runtimes.onnxruntime.cuda_kv_cache import CudaKvCache
from nanoquant_edge.runtimes.onnxruntime.providers import check_started, provider_list
from nanoquant_edge.system.native import CUDA_LIBRARY_NAME, NATIVE_DIR_VARIABLE


@pytest.fixture(scope="module")
def half_bundle(tiny_bundle: Path) -> Bundle:
    folder = tiny_bundle.parent
    export_onnx(folder / "checkpoint", folder / "half", dtype="float16")
    return Bundle.open(folder / "half")


def runtime(*providers: str, **more: object) -> SimpleNamespace:
    return SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: list(providers), **more)


def refusal(bundle: Bundle, provider: str, *available: str) -> NqEdgeError:
    with pytest.raises(NqEdgeError) as caught:
        provider_list(runtime(*available), bundle, provider)
    return caught.value


def test_an_unknown_provider_is_refused(half_bundle: Bundle) -> None:
    error = refusal(half_bundle, "rocm")
    assert error.code == "NQ-OPTION"
    assert "cpu, cuda" in error.message


def test_a_float32_bundle_is_refused_on_a_gpu(tiny_bundle: Path) -> None:
    error = refusal(Bundle.open(tiny_bundle), "cuda", "CUDAExecutionProvider")
    assert error.code == "NQ-BACKEND"
    assert "float32" in error.message
    assert "--dtype float16" in error.hint


def test_a_runtime_without_cuda_is_refused(half_bundle: Bundle) -> None:
    error = refusal(half_bundle, "cuda", "CPUExecutionProvider")
    assert error.code == "NQ-BACKEND"
    assert "has no CUDA provider" in error.message
    assert "pip install 'onnxruntime-gpu>=" in error.hint


def test_missing_kernels_are_refused(half_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(tmp_path))
    error = refusal(half_bundle, "cuda", "CUDAExecutionProvider")
    assert error.code == "NQ-NATIVE-MISSING"
    assert "libnanoquant_cuda.so" in error.message


def test_cuda_comes_first_and_its_libraries_are_loaded(
    half_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / CUDA_LIBRARY_NAME).touch()
    monkeypatch.setenv(NATIVE_DIR_VARIABLE, str(tmp_path))
    called: list[bool] = []
    fake = runtime("CUDAExecutionProvider", "CPUExecutionProvider", preload_dlls=lambda: called.append(True))
    names = [entry[0] if isinstance(entry, tuple) else entry for entry in provider_list(fake, half_bundle, "cuda")]
    assert names == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert called == [True]


def test_falling_back_to_the_cpu_is_an_error() -> None:
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    check_started(runtime(), session, "cpu")
    with pytest.raises(NqEdgeError, match="fell back to the CPU") as caught:
        check_started(runtime(), session, "cuda")
    assert caught.value.code == "NQ-BACKEND"
    assert "cuDNN" in caught.value.hint


def test_the_real_runtime_here_says_that_it_has_no_gpu(half_bundle: Bundle) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    with pytest.raises(NqEdgeError, match="has no CUDA provider"):
        OnnxRuntimeBackend(half_bundle, provider="cuda")


class _Value:
    """What OrtValue does for the cache."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array

    def shape(self) -> list[int]:
        return list(self.array.shape)


def test_the_cache_on_a_gpu_grows_and_keeps_its_tokens() -> None:
    asked: list[tuple[str, int]] = []

    def from_numpy(array: np.ndarray, device: str, index: int) -> _Value:
        asked.append((device, index))
        return _Value(array.copy())

    fake = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=from_numpy))
    layout = KvLayout(layers=2, heads=3, head_dim=16, dtype="float16", capacity=4096)
    cache = CudaKvCache(layout, 4096, runtime=fake)
    assert cache.reserve(1, 10)
    assert not cache.reserve(1, 256)
    assert set(asked) == {("cuda", 0)}
    cache.keys[1].array[:, :, :10] = 7
    cache.lengths = np.array([10])
    assert cache.reserve(1, 300)
    assert cache.capacity == 512
    assert (cache.keys[1].numpy()[:, :, :10] == 7).all()
    assert (cache.keys[1].numpy()[:, :, 10:] == 0).all()
    assert cache.bytes == 2 * 2 * 3 * 512 * 16 * 2
