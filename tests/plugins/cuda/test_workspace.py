# SPDX-License-Identifier: Apache-2.0
"""What an engine sets aside for its largest number of rows suffices for every smaller one, whatever runs."""

from __future__ import annotations

import pytest

from tests.plugins.cuda import capi

pytestmark = pytest.mark.gpu

ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 63, 64, 65, 128, 500, 1024, 4096, 5000)


def describe(n: int, ranks: tuple[int, ...], out: int, rows: int, algorithm: int) -> capi.Pass:
    """A pass without pointers, and its layers, which it keeps alive."""
    layers = (capi.Linear * len(ranks))()
    for layer, rank in zip(layers, ranks, strict=True):
        layer.in_features, layer.rank, layer.out_features = n, rank, out
        layer.layout, layer.scale_type = capi.TILES, capi.FLOAT16
    call = capi.Pass()
    call.layers, call.count, call.rows, call.algorithm = layers, len(ranks), rows, algorithm
    call.x_type = call.y_type = capi.FLOAT16
    return call


@pytest.mark.parametrize(
    ("n", "ranks", "out"),
    [(64, (40,), 72), (576, (280, 65, 65), 576), (2048, (992,), 2048), (28672, (6336,), 8192), (65536, (9, 9000), 33)],
    ids=str,
)
def test_the_bound_holds(n: int, ranks: tuple[int, ...], out: int, algorithm: int, cuda: capi.Cuda) -> None:
    for limit in ROWS:
        bound = cuda.workspace_bound(describe(n, ranks, out, limit, capi.AUTO))
        for rows in (rows for rows in ROWS if rows <= limit):
            need = cuda.workspace_bytes(describe(n, ranks, out, rows, algorithm))
            assert 0 < need <= bound, (rows, limit)


def test_an_invalid_pass_has_no_bound(cuda: capi.Cuda) -> None:
    call = describe(64, (40,), 72, 1, capi.AUTO)
    call.count = 5
    assert cuda.workspace_bound(call) == 0
