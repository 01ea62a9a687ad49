# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels compute, on a machine without a GPU: the same sources on an emulator, against float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.runtimes.cuda.binding import Algorithm, CType, Input
from tests.plugins.emulated import Buffer, Emulated, run_pass

ROOT = Path(__file__).parents[2]
BITS, BYTES, MMA = Algorithm.GEMV_BITS, Algorithm.GEMV_BYTES, Algorithm.GEMM_MMA
#: largest relative error of a row against float64 for float16 activations
LIMIT = 1e-3
ALGORITHMS = pytest.mark.parametrize("algorithm", [BITS, BYTES, MMA], ids=["bits", "bytes", "mma"])


@pytest.fixture(scope="session")
def emulate(emulated_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Emulated]:
    """A library that believes to run on a GPU of the given compute capability."""
    made: dict[int, Emulated] = {}

    def load(capability: int) -> Emulated:
        if capability not in made:
            # A copy has its own state, so that several GPUs can be had in one process.
            copy = tmp_path_factory.mktemp("gpu") / f"sm_{capability}.so"
            shutil.copy(emulated_library, copy)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NQ_EMULATED_SM", str(capability))
                made[capability] = Emulated(copy)
            assert made[capability].device.compute_capability == capability
        return made[capability]

    return load


@ALGORITHMS
@pytest.mark.parametrize("sizes", [(1, 1, 40), (256, 256, 16), (37, 19, 53), (576, 500, 300), (264, 300, 33)])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 17])
def test_any_shape(emulate: Callable, algorithm: int, sizes: tuple, rows: int) -> None:
    result = run_pass(emulate(89), [sizes], rows, algorithm=algorithm, seed=rows)
    assert result.status == 0
    assert result.whole
    assert result.error() <= LIMIT


@ALGORITHMS
@pytest.mark.parametrize(("x_type", "limit"), [(CType.FLOAT16, 1e-3), (CType.BFLOAT16, 2.5e-3)], ids=["f16", "bf16"])
@pytest.mark.parametrize("scale", list(CType), ids=lambda scale: scale.name.lower())
def test_types(emulate: Callable, algorithm: int, x_type: CType, limit: float, scale: CType) -> None:
    emulated = emulate(89)
    for mid, bias in ((False, False), (True, True)):
        for y_type, bar in ((x_type, limit), (CType.FLOAT32, 1e-3)):
            result = run_pass(
                emulated, [(320, 96, 400)], 2, algorithm=algorithm, x_type=x_type, y_type=y_type, scale=scale,
                mid=mid, bias=bias,
            )  # fmt: skip
            assert result.status == 0
            assert result.whole
            assert result.error() <= bar


@ALGORITHMS
@pytest.mark.parametrize("kind", list(Input), ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("rows", [1, 5])
def test_inputs_groups_and_residual(emulate: Callable, algorithm: int, kind: Input, rows: int) -> None:
    sizes = [(520, 300, 64), (520, 40, 500), (520, 513, 17)]
    result = run_pass(
        emulate(89), sizes, rows, algorithm=algorithm, kind=kind, residual=True, x_type=CType.BFLOAT16
    )  # fmt: skip
    assert result.status == 0
    assert result.whole
    assert result.error() <= LIMIT


@ALGORITHMS
@pytest.mark.parametrize("capability", [75, 80, 86, 90])
def test_each_gpu(emulate: Callable, algorithm: int, capability: int) -> None:
    emulated = emulate(capability)
    for rows in (1, 4, 8):
        result = run_pass(emulated, [(1536, 420, 576)], rows, algorithm=algorithm)
        if algorithm == BITS and capability == 75:
            assert result.status == 5  # no one-bit tensor cores
            continue
        assert result.status == 0
        assert result.whole
        assert result.error() <= LIMIT


@pytest.mark.parametrize("capability", [75, 89])
@pytest.mark.parametrize(
    ("sizes", "rows"), [((33000, 20, 40), 1), ((9000, 30, 40), 1), ((40, 9000, 33), 1), ((9000, 30, 40), 7)]
)
@pytest.mark.parametrize("algorithm", [BITS, BYTES], ids=["bits", "bytes"])
def test_wide_layers(emulate: Callable, algorithm: int, sizes: tuple, rows: int, capability: int) -> None:
    """More columns than the warps of a block hold at once."""
    if algorithm == BITS and capability == 75:
        pytest.skip("no one-bit tensor cores")
    result = run_pass(emulate(capability), [sizes], rows, algorithm=algorithm)
    assert result.status == 0
    assert result.whole
    assert result.error() <= LIMIT


def test_many_row_tiles(emulate: Callable) -> None:
    """More row tiles than a block adds up at once: several passes."""
    for rows in (1, 2, 8):
        result = run_pass(emulate(86), [(64, 900, 1700)], rows, algorithm=BITS)
        assert result.status == 0
        assert result.whole
        assert result.error() <= LIMIT


@ALGORITHMS
def test_not_finite_is_not_hidden(emulate: Callable, algorithm: int) -> None:
    """A NaN among the activations of one row gives NaN there and nothing elsewhere."""
    emulated = emulate(89)
    rows = 3
    clean = run_pass(emulated, [(256, 64, 48)], rows, algorithm=algorithm, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        real = Buffer.__init__

        def spoil(self: Buffer, array: np.ndarray) -> None:
            real(self, array)
            if array.shape == (rows, 256) and array.dtype == np.float16:
                self.array[1, 7] = np.nan

        patch.setattr(Buffer, "__init__", spoil)
        spoiled = run_pass(emulated, [(256, 64, 48)], rows, algorithm=algorithm, seed=5)
    assert np.isnan(spoiled.outputs[0][1]).all()
    np.testing.assert_array_equal(spoiled.outputs[0][[0, 2]], clean.outputs[0][[0, 2]])


def test_bits_and_bytes_agree_exactly(emulate: Callable) -> None:
    """Both multiply the same fixed-point integers, so only the order of the last sums could differ."""
    for rows in (1, 6):
        bits, each = (run_pass(emulate(89), [(700, 300, 90)], rows, algorithm=way) for way in (BITS, BYTES))
        np.testing.assert_allclose(bits.outputs[0], each.outputs[0], rtol=1e-4, atol=1e-5)


def test_tiles_there_and_back(emulate: Callable) -> None:
    lib = emulate(89).lib
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (16, 256), (17, 257), (40, 900)):
        width = -(-columns // 32)
        words = rng.integers(-(2**31), 2**31, (rows, width)).astype(np.int32)
        if columns % 32:
            words[:, -1] &= (1 << columns % 32) - 1
        source, back = Buffer(words), Buffer(np.full_like(words, -1))
        tiles = Buffer(np.full(lib.nq_cuda_tile_words(rows, columns), -1, np.int32))
        assert lib.nq_cuda_make_tiles(source.pointer, rows, columns, tiles.pointer, None) == 0
        assert lib.nq_cuda_unmake_tiles(tiles.pointer, rows, columns, back.pointer, None) == 0
        np.testing.assert_array_equal(back.array, words)
        assert source.whole
        assert tiles.whole
        assert back.whole
