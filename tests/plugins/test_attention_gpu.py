# SPDX-License-Identifier: Apache-2.0
"""Attention on a real GPU against float64, through the library's own memory functions: needs no PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanoquant_edge.runtimes.cuda.binding import CType
from nanoquant_edge.system.native import cuda_library_path
from tests.plugins.attention_cases import Case, Layout, Library, check_case, run_case
from tests.plugins.attention_grid import CASES, LARGE

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def library() -> Library:
    """The library of this machine; NQ_EDGE_NATIVE_DIR names another folder."""
    loaded = Library(str(cuda_library_path()))
    loaded.describe()
    return loaded


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_against_float64(library: Library, name: str) -> None:
    for case in {**CASES, **LARGE}[name]:
        check_case(library, case)


@pytest.mark.parametrize("bits", [16, 8])
def test_the_same_bits_every_time(library: Library, bits: int) -> None:
    one = Case((4000, 77), (1, 1), heads=(8, 2), cache=Layout(bits, page_tokens=64, capacity=4096), fused=True)
    many = replace(one, new=(9, 30), fused=False, type=CType.BFLOAT16)
    for case in (one, many):
        assert len({run_case(library, case).digest for _ in range(5)}) == 1
