# SPDX-License-Identifier: Apache-2.0
"""The runtime over the kernels themselves, on an emulated GPU: what stands between them and the stand-in shows here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoquant_edge.runtimes.cuda import binding
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.sampling import SamplingConfig
from nanoquant_edge.system.native import CUDA_LIBRARY_NAME, NATIVE_DIR_VARIABLE
from tests.plugins import builds
from tests.runtimes.cuda.against_pytorch import LIMITS, Models, logits_of, relative_error


@pytest.fixture
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    try:
        (tmp_path / CUDA_LIBRARY_NAME).symlink_to(builds.emulated_library())
    except builds.Missing as error:
        pytest.skip(str(error))
    monkeypatch.setenv(NATIVE_DIR_VARIABLE, str(tmp_path))
    binding.library.cache_clear()
    yield
    binding.library.cache_clear()


@pytest.mark.parametrize(
    ("name", "embedding", "dtype", "bits"),
    [("llama", "int8", "bfloat16", 16), ("gemma3", "int4", "float16", 8), ("opt", "float16", "float16", 16)],
)
def test_logits_equal_pytorch(name: str, embedding: str, dtype: str, bits: int, tmp_path: Path, emulated: None) -> None:
    checkpoint, ids, expected = Models(tmp_path)(name, embedding)
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype, cache_bits=bits) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, bits]
        backend.reset()
        first = backend.forward(ids[:1, :9])
        written = list(backend.write(ids[0, :9], 3, SamplingConfig()))
        assert written[0] == first[0, -1].argmax()
