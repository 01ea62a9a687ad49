# SPDX-License-Identifier: Apache-2.0
"""Tables, norms and the output head of nq_cuda_table.h on host memory, against float64.

Two libraries run the same cases: the kernels on the emulator of a GPU, and the stand-in of the runtime's tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins import table_cases as cases
from tests.plugins.emulated import Buffer
from tests.plugins.table_calls import Normalization, Output, load
from tests.plugins.table_cases import BFLOAT16, FLOAT16, FLOAT32, LAYER, NONE, RMS, Head, Random

FORMATS = pytest.mark.parametrize(
    ("bits", "kind"), [(16, FLOAT16), (16, BFLOAT16), (8, FLOAT16), (4, FLOAT16)], ids=["f16", "bf16", "int8", "int4"]
)
KINDS = pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=["f16", "bf16"])
#: largest relative error of a row in 16 bits: what rounding costs a row that outliers rule
LIMITS = {FLOAT16: 1e-3, BFLOAT16: 2**-8}
#: of float32 logits, whose operands are exact; with a norm they are rounded to 16 bits
EXACT = 5e-6
#: rows of memory that kernels may not touch, around every array
Memory = Callable[[np.ndarray], tuple[int, Callable[[], np.ndarray]]]


@pytest.fixture(scope="module", params=["emulated", "stand_in"])
def lib(request: pytest.FixtureRequest) -> Any:
    if request.param == "emulated":
        return load(request.getfixturevalue("emulated_library"))
    return load(request.getfixturevalue("host_build") / "tests" / "libnq_stand_in_cuda.so")


@pytest.fixture(scope="module")
def turing(emulated_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The emulator as a GPU with little shared memory and no products of bfloat16."""
    copy = tmp_path_factory.mktemp("gpu") / "sm_75.so"
    copy.write_bytes(emulated_library.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NQ_EMULATED_SM", "75")
        loaded = load(copy)
        loaded.nq_cuda_describe(ctypes.create_string_buffer(16))
        yield loaded


@pytest.fixture
def place() -> Iterator[Memory]:
    """Memory between guard bands, which are whole at the end."""
    held: list[Buffer] = []

    def put(array: np.ndarray) -> tuple[int, Callable[[], np.ndarray]]:
        held.append(Buffer(array))
        return held[-1].pointer, held[-1].array.copy

    yield put
    assert all(buffer.whole for buffer in held)


@FORMATS
@pytest.mark.parametrize("shape", [(1, 1), (37, 64), (20, 33), (130, 300), (33, 576)], ids=str)
@pytest.mark.parametrize("rows", [1, 8, 9, 16])
def test_the_head_for_few_rows(lib: Any, place: Memory, bits: int, kind: int, shape: tuple, rows: int) -> None:
    table = Random(np.random.default_rng(rows), shape, bits, kind=kind)
    status, found, wanted = Head(lib, place, table, rows, kind=kind, seed=rows).run()
    assert status == 0
    assert cases.row_errors(found, wanted) <= EXACT


@FORMATS
@pytest.mark.parametrize("rows", [17, 64, 65, 150])
def test_the_head_for_many_rows(lib: Any, place: Memory, bits: int, kind: int, rows: int) -> None:
    for shape in ((150, 320), (129, 70)):
        table = Random(np.random.default_rng(rows), shape, bits, kind=kind)
        status, found, wanted = Head(lib, place, table, rows, kind=kind, norm=RMS if bits == 8 else NONE).run()
        assert status == 0
        assert cases.row_errors(found, wanted) <= (1e-3 if bits == 8 else EXACT)


@FORMATS
@pytest.mark.parametrize("rows", [3, 20])
def test_norms_caps_and_chosen_rows_in_the_head(lib: Any, place: Memory, bits: int, kind: int, rows: int) -> None:
    table = Random(np.random.default_rng(rows), (90, 200), bits, kind=kind)
    for norm, bias in ((RMS, False), (LAYER, True), (LAYER, False)):
        head = Head(lib, place, table, rows, kind=kind, norm=norm, bias=bias, soft_cap=30.0, ends=True)
        status, found, wanted = head.run()
        assert status == 0
        # Without a table of bfloat16, x in bfloat16 keeps 11 bits of what the norm gives.
        assert cases.row_errors(found, wanted) <= (LIMITS[kind] if bits == 16 else 1e-3)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 64), (4, 64), (4, 96), (4, 4096)])
@pytest.mark.parametrize("scale", [FLOAT32, FLOAT16, BFLOAT16], ids=["f32", "f16", "bf16"])
def test_groups_and_types_of_scales(lib: Any, place: Memory, bits: int, group: int, scale: int) -> None:
    table = Random(np.random.default_rng(group), (40, 320), bits, kind=scale, group=group)
    for rows in (2, 11, 33):
        for kind in (FLOAT16, BFLOAT16):
            status, found, wanted = Head(lib, place, table, rows, kind=kind).run()
            assert status == 0
            assert cases.row_errors(found, wanted) <= EXACT


@FORMATS
def test_a_gpu_with_little_shared_memory(turing: Any, place: Memory, bits: int, kind: int) -> None:
    for shape, rows in (((40, 320), 33), ((20, 8000), 9), ((18, 16384), 2)):
        table = Random(np.random.default_rng(1), shape, bits, kind=kind)
        status, found, wanted = Head(turing, place, table, rows, kind=kind).run()
        assert status == 0
        assert cases.row_errors(found, wanted) <= 2 * EXACT


def test_rows_do_not_touch_each_other(lib: Any, place: Memory) -> None:
    """NaN and huge values in one row of x, and a NaN in one row of the table, stay there."""
    table = Random(np.random.default_rng(1), (40, 64), 16)
    table.arrays[0][7, 3] = np.nan
    table.dense[7, 3] = np.nan

    class Spoiled(Head):
        pass

    for rows in (4, 20):
        real = cases.activations

        def spoil(*given: Any, real: Any = real, **options: Any) -> np.ndarray:
            x = real(*given, **options)
            x[1, 5] = np.nan
            x[2] *= np.float16(6e4 / 400)
            return x

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cases, "activations", spoil)
            status, found, wanted = Head(lib, place, table, rows, norm=RMS).run()
        assert status == 0
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 7]).all()
        rest = np.delete(np.delete(found, 1, 0), 7, 1), np.delete(np.delete(wanted, 1, 0), 7, 1)
        assert cases.row_errors(*rest) <= 1e-3


@FORMATS
@pytest.mark.parametrize("columns", [1, 33, 64, 576])
def test_embedding(lib: Any, place: Memory, bits: int, kind: int, columns: int) -> None:
    table = Random(np.random.default_rng(columns), (11, columns), bits, kind=kind)
    tokens = np.array([3, 0, 10, 3, -1, 11, 7])
    status, found = cases.embed(lib, place, table, tokens, kind=kind, multiplier=3.5)
    assert status == 0
    inside = (tokens >= 0) & (tokens < 11)
    wanted = 3.5 * table.dense[tokens[inside]]
    assert cases.row_errors(found[inside], wanted) <= LIMITS[kind]
    assert np.isnan(found[~inside].astype(np.float32)).all()  # left alone


def test_learned_positions_and_idle_sequences(lib: Any, place: Memory) -> None:
    rng = np.random.default_rng(0)
    table, learned = Random(rng, (20, 40), 8), rng.normal(size=(12, 40))
    tokens = np.arange(8)
    at = learned.astype(np.float16).astype(np.float64)
    # One row each: the second is idle, the last one's place is past the table of positions.
    status, found = cases.embed(lib, place, table, tokens[:4], learned=learned, positions=[0, -1, 9, 10])
    assert status == 0
    wanted = table.dense[[0, 2, 3]] + np.stack([at[2], at[11], np.zeros(40)])
    assert cases.row_errors(found[[0, 2, 3]], wanted) <= 1e-3
    assert np.isnan(found[1].astype(np.float32)).all()
    # Ragged: three rows from place 4, none, two of an idle one, two from place 0; the last row is nobody's.
    status, found = cases.embed(
        lib, place, table, tokens, learned=learned, positions=[4, 5, -1, 0], starts=[0, 3, 3, 5, 7]
    )
    assert status == 0
    kept = [0, 1, 2, 5, 6]
    assert cases.row_errors(found[kept], table.dense[kept] + at[[6, 7, 8, 2, 3]]) <= 1e-3
    assert np.isnan(found[[3, 4, 7]].astype(np.float32)).all()


@KINDS
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (1, 37), (5, 300), (9, 1024), (2, 2056)], ids=str)
def test_norms(lib: Any, place: Memory, kind: int, shape: tuple[int, int]) -> None:
    for which, bias in ((RMS, False), (LAYER, True), (NONE, False)):
        for residual, in_place in ((False, False), (True, False), (True, True)):
            if shape[1] == 1 and which == LAYER:
                continue  # nothing but rounding is left of a single value
            status, found, wanted = cases.norm(
                lib, place, shape, kind, which, bias=bias, residual=residual, in_place=in_place
            )
            assert status == 0
            assert cases.row_errors(found, wanted) <= LIMITS[kind]


@KINDS
def test_relu(lib: Any, place: Memory, kind: int) -> None:
    for count in (1, 8, 37, 5000):
        x = cases.rounded(np.random.default_rng(count).normal(size=count), kind)
        x[0] = np.nan
        pointer, _ = place(x)
        out, read = place(np.full_like(x, 7))
        assert lib.nq_cuda_activate(kind, pointer, count, out, None) == 0
        wanted = np.maximum(x, 0)
        np.testing.assert_array_equal(read().astype(np.float32), wanted.astype(np.float32))


def test_refusals(lib: Any, place: Memory) -> None:
    """What contradicts itself is refused, and nothing is written."""
    table = Random(np.random.default_rng(0), (20, 64), 8)

    def status(**changes: Any) -> int:
        call = Output(table=table.struct(place), x_type=FLOAT16, rows=2, x_stride=64, logits_stride=20)
        call.x, call.logits = place(np.zeros((2, 64), np.float16))[0], place(np.zeros((2, 20), np.float32))[0]
        call.workspace_bytes = 4096
        call.workspace = place(np.zeros(4096, np.uint8))[0]
        for name, value in changes.items():
            setattr(call.table if name in ("columns", "group", "bits", "codes", "scale_type") else call, name, value)
        if "table_rows" in changes:
            call.table.rows = changes["table_rows"]
        return int(lib.nq_cuda_head(ctypes.byref(call), None))

    assert status() == 0
    for change in (
        {"columns": 0}, {"group": 48}, {"group": 0}, {"bits": 2}, {"codes": None}, {"scale_type": 3},
        {"x_type": FLOAT32}, {"rows": 0}, {"x": None}, {"x_stride": 60}, {"x_stride": 65}, {"logits_stride": 19},
        {"logits": None}, {"soft_cap": -1.0}, {"soft_cap": float("nan")}, {"norm": 3}, {"norm": RMS}, {"table_rows": 0},
    ):  # fmt: skip
        assert status(**change) == 1, change
    assert status(columns=16385, group=16385) == 3
    assert status(workspace=None) == 7
    assert status(workspace_bytes=16) == 7
    call = Normalization(norm=RMS, type=FLOAT16, rows=1, columns=8, x_stride=8, out_stride=8)
    assert lib.nq_cuda_norm(ctypes.byref(call), None) == 1
    assert lib.nq_cuda_head(None, None) == 1
    assert lib.nq_cuda_embed(None, None) == 1
