# SPDX-License-Identifier: Apache-2.0
"""Attention of the CUDA library, on an emulator of a GPU and in the tests' stand-in, against float64."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanoquant_edge.runtimes.cuda.binding import CAttention, CCache, CType, Status
from tests.plugins.attention_cases import Case, Layout, Library, check_case
from tests.plugins.attention_grid import CASES

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


def _valid(**changes: object) -> CAttention:
    """A description that only its pointers, which lead nowhere, keep from running; `changes` by a field's name."""
    call = CAttention(
        type=CType.FLOAT16, sequences=2, heads=6, kv_heads=2, head_dim=64, max_tokens=1, scale=0.125, positions=4096,
        q=4096, k=4096, v=4096, y=4096, q_stride=384, k_stride=128, v_stride=128, y_stride=384, workspace=4096,
        workspace_bytes=1 << 30, cache=CCache(bits=16, page_tokens=64, pages=2, keys=4096, values=4096),
    )  # fmt: skip
    for name, value in changes.items():
        owner = call.cache if name in dict.fromkeys(field[0] for field in CCache._fields_) else call
        setattr(owner, name, value)
    return call


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"type": CType.FLOAT32}, Status.BAD_ARGUMENT),
        ({"bits": 4}, Status.BAD_ARGUMENT),
        ({"bits": 8}, Status.BAD_ARGUMENT),  # without scales
        ({"kv_heads": 4}, Status.BAD_ARGUMENT),
        ({"head_dim": 72}, Status.NO_KERNEL),
        ({"head_dim": 272}, Status.NO_KERNEL),
        ({"page_table": 4096, "page_tokens": 24, "table_stride": 3}, Status.BAD_ARGUMENT),
        ({"page_table": 4096, "page_tokens": 8, "table_stride": 3}, Status.BAD_ARGUMENT),
        ({"page_table": 4096, "page_tokens": 1 << 20, "table_stride": 1 << 20}, Status.TOO_LARGE),
        ({"pages": 1}, Status.BAD_ARGUMENT),  # of two sequences
        ({"pages": 1 << 30}, Status.TOO_LARGE),
        ({"positions": None}, Status.BAD_ARGUMENT),
        ({"q": 4104}, Status.BAD_ARGUMENT),
        ({"k_stride": 120}, Status.BAD_ARGUMENT),
        ({"q_norm": 4096}, Status.BAD_ARGUMENT),  # and none of keys
        ({"window": -1}, Status.BAD_ARGUMENT),
        ({"soft_cap": float("nan")}, Status.BAD_ARGUMENT),
        ({"scale": 0.0}, Status.BAD_ARGUMENT),
        ({"starts": 4096}, Status.BAD_ARGUMENT),  # nq_cuda_attend takes one token of each
        ({"max_tokens": 2}, Status.BAD_ARGUMENT),
        ({"workspace": 4112}, Status.WORKSPACE),
        ({"workspace_bytes": 64}, Status.WORKSPACE),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.name,
)
@pytest.mark.parametrize("built", ["emulator", "stand-in"])
def test_bad_descriptions_are_refused(
    request: pytest.FixtureRequest, emulate: Callable[[int], Library], built: str, changes: dict, status: Status
) -> None:
    if built == "emulator":
        library = emulate(90)
    else:
        library = Library(str(request.getfixturevalue("host_build") / "tests" / "libnq_stand_in_cuda.so"))
    assert library.lib.nq_cuda_attend(ctypes.byref(_valid(**changes)), None) == status


def test_one_workspace_is_for_all_smaller_calls(emulate: Callable[[int], Library]) -> None:
    def size(**changes: object) -> int:
        call = _valid(pages=64, page_tokens=4096, heads=32, kv_heads=8, **changes)
        return int(emulate(90).lib.nq_cuda_attend_workspace_bytes(ctypes.byref(call)))

    for bits in (16, 8):
        most = size(sequences=16, max_tokens=512, bits=bits)
        assert 0 < most < 16e6
        for sequences in (1, 2, 5, 16):
            for tokens in (1, 2, 17, 64, 300, 512):
                for window in (0, 100):
                    assert 0 < size(sequences=sequences, max_tokens=tokens, bits=bits, window=window) <= most
    assert size(head_dim=72) == 0
