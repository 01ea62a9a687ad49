# SPDX-License-Identifier: Apache-2.0
"""The CUDA library's stand-in in the place of the library, so that the runtime works on machines without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoquant_edge.runtimes.cuda import binding
from nanoquant_edge.system.native import CUDA_LIBRARY_NAME, NATIVE_DIR_VARIABLE, ORT_LIBRARY_NAME, ort_library_path
from tests.plugins import builds


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of native libraries whose CUDA library is the stand-in."""
    try:
        built = builds.build("stand_in") / "tests" / "libnq_stand_in_cuda.so"
    except builds.Missing as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("native")
    (folder / CUDA_LIBRARY_NAME).symlink_to(built)
    (folder / ORT_LIBRARY_NAME).symlink_to(ort_library_path())
    return folder


@pytest.fixture
def stand_in(stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One invented GPU of 1 GiB."""
    monkeypatch.setenv(NATIVE_DIR_VARIABLE, str(stand_in_folder))
    binding.library.cache_clear()
    yield stand_in_folder
    binding.library.cache_clear()
