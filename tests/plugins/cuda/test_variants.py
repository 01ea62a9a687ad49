# SPDX-License-Identifier: Apache-2.0
"""What a pass can do beside the plain product: inputs, groups, residuals, extreme magnitudes, 8-bit activations."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.cuda import capi, layers
from tests.plugins.cuda.conftest import Record

pytestmark = pytest.mark.gpu

HEIGHTS = [1, 3, 8, 17, 130]
KINDS = pytest.mark.parametrize("kind", [capi.FLOAT16, capi.BFLOAT16], ids=["f16", "bf16"])
INPUTS = {"rms_norm": capi.RMS_NORM, "silu": capi.SILU, "gelu": capi.GELU}


@KINDS
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("shape", [(576, 376, 192), (1536, 424, 576), (100, 31, 257), (6912, 260, 1152)])
def test_inputs(
    shape: tuple[int, int, int], name: str, kind: int, algorithm: int, cuda: capi.Cuda, record: Record
) -> None:
    if name != "rms_norm":  # the second half of a gated row begins at a multiple of 16 bytes
        shape = ((shape[0] + 7) // 8 * 8, *shape[1:])
    layer = layers.make_layer(cuda, *shape, scale=kind)
    weight = layers.make_x(1, shape[0], kind, seed=5, outliers=False)[0] if name == "rms_norm" else None
    width = shape[0] * (1 if name == "rms_norm" else 2)
    for rows in HEIGHTS:
        x = layers.make_x(rows, width, kind, seed=rows, outliers=name == "rms_norm")
        y_type = capi.FLOAT32 if rows == 3 else kind
        run = layers.Run(cuda, [layer], x, y_type, algorithm, INPUTS[name], norm_weight=weight, norm_eps=1e-5)
        run.checked()
        record("inputs", run)


@KINDS
@pytest.mark.parametrize("count", [2, 3, 4, -4])
def test_groups(count: int, kind: int, algorithm: int, cuda: capi.Cuda, record: Record) -> None:
    # Different ranks and sizes; mid scale, bias and residual on some only. The widest layer last, and first.
    sizes = [(280, 576), (65, 192), (1, 33), (700, 1536)][: abs(count)][:: -1 if count < 0 else 1]
    for n in (576, 130):
        made = [
            layers.make_layer(cuda, n, rank, m, mid=i % 2 == 0, bias=i % 3 != 1, seed=i)
            for i, (rank, m) in enumerate(sizes)
        ]
        for rows in HEIGHTS:
            x = layers.make_x(rows, n, kind, seed=rows)
            residual = [layers.make_x(rows, m, kind, seed=9) if i == 1 else None for i, (_, m) in enumerate(sizes)]
            weight = layers.make_x(1, n, kind, seed=5)[0]
            run = layers.Run(
                cuda, made, x, kind, algorithm, capi.RMS_NORM, norm_weight=weight, residual=residual, padding=24
            )
            run.checked()
            record("groups", run)


@KINDS
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in-place"])
def test_residual(in_place: bool, kind: int, algorithm: int, cuda: capi.Cuda, record: Record) -> None:
    layer = layers.make_layer(cuda, 1536, 424, 577)
    for rows in HEIGHTS:
        for y_type in (kind, capi.FLOAT32):
            x = layers.make_x(rows, 1536, kind, seed=rows)
            residual = layers.make_x(rows, 577, y_type, seed=rows + 1)
            run = layers.Run(cuda, [layer], x, y_type, algorithm, residual=[residual], in_place=in_place)
            run.checked()
            record("residual", run)


@pytest.mark.parametrize("power", [-30, -18, 12, 30])
def test_magnitudes_that_float16_cannot_hold(power: int, algorithm: int, cuda: capi.Cuda, record: Record) -> None:
    """scale_in * x and the rank values leave float16's range; bfloat16 models do that (Gemma-3)."""
    layer = layers.make_layer(cuda, 1152, 320, 640, scale=capi.FLOAT32, bias=False, gain=2.0**-power)
    for rows in HEIGHTS:
        x = layers.make_x(rows, 1152, capi.BFLOAT16, seed=rows, size=2.0**power)
        run = layers.Run(cuda, [layer], x, capi.BFLOAT16, algorithm)
        run.checked()
        record("magnitudes", run)


def test_rows_of_zeros(algorithm: int, cuda: capi.Cuda) -> None:
    """A row of zeros gives the bias exactly, and so do its neighbours what they would give without it."""
    layer = layers.make_layer(cuda, 576, 280, 192)
    for rows in HEIGHTS:
        x = layers.make_x(rows, 576, capi.FLOAT16, seed=rows)
        x[0] = 0
        (y,) = layers.Run(cuda, [layer], x, capi.FLOAT32, algorithm).checked()
        assert layer.bias is not None
        assert torch.equal(y[0], layer.bias.float())


def test_a_dense_matrix_gives_the_same(algorithm: int, cuda: capi.Cuda) -> None:
    """The layer as one dense matrix, multiplied out by torch."""
    layer = layers.make_layer(cuda, 576, 280, 1536, bias=False)
    assert layer.scale_mid is not None
    left = layer.scale_out.double()[:, None] * layer.u.double() * layer.scale_mid.double()
    dense = left @ (layer.v.double() * layer.scale_in.double())
    for rows in HEIGHTS:
        x = layers.make_x(rows, 576, capi.BFLOAT16, seed=rows)
        (y,) = layers.Run(cuda, [layer], x, capi.FLOAT32, algorithm).checked()
        wanted = x.double() @ dense.T
        assert float(((y - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()) <= 1e-3


@KINDS
def test_eight_bit_activations(kind: int, algorithm: int, cuda: capi.Cuda, record: Record) -> None:
    """The 8-bit mode may round activations to 1/127 of their row's largest, twice: 2 % a time, 3 % in all."""
    layer = layers.make_layer(cuda, 1024, 512, 3072)
    for rows in [*HEIGHTS, 512]:
        x = layers.make_x(rows, 1024, kind, seed=rows, outliers=False)
        run = layers.Run(cuda, [layer], x, kind, algorithm, precision=capi.INT8)
        run.checked()
        record("int8 mode", run, 0.04)  # the worst of many rows
