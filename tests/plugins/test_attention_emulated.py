# SPDX-License-Identifier: Apache-2.0
"""Attention of the CUDA library, on an emulator of a GPU and in the tests' stand-in, against float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanoquant_edge.runtimes.cuda.binding import CType
from tests.plugins.attention_cases import CASES, Case, Layout, Library, check_case

#: cases by name, of all libraries
NAMES = list(CASES)


@pytest.fixture(scope="session")
def emulate(emulated_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Library]:
    """A library that believes to run on a GPU of the given compute capability."""
    made: dict[int, Library] = {}

    def load(capability: int) -> Library:
        if capability not in made:
            copy = tmp_path_factory.mktemp("gpu") / f"sm_{capability}.so"
            shutil.copy(emulated_library, copy)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NQ_EMULATED_SM", str(capability))
                made[capability] = Library(str(copy))
                made[capability].describe()
        return made[capability]

    return load


@pytest.mark.parametrize("name", NAMES)
def test_on_the_emulator(emulate: Callable[[int], Library], name: str) -> None:
    for case in CASES[name]:
        check_case(emulate(90), case)


@pytest.mark.parametrize("name", NAMES)
def test_in_the_stand_in(host_build: Path, name: str) -> None:
    library = Library(str(host_build / "tests" / "libnq_stand_in_cuda.so"))
    for case in CASES[name]:
        check_case(library, case)


@pytest.mark.parametrize("capability", [75, 86])
def test_on_gpus_with_less_shared_memory_or_older_tensor_cores(
    emulate: Callable[[int], Library], capability: int
) -> None:
    for bits in (16, 8):
        for dim in (64, 128, 256):
            case = Case((70, -1, 3), (4, 1, 6), head_dim=dim, cache=Layout(bits=bits, page_tokens=16, capacity=80))
            check_case(emulate(capability), case)
            check_case(emulate(capability), replace(case, type=CType.BFLOAT16, window=30, new=(1, 1, 1), fused=True))
