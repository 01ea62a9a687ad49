# SPDX-License-Identifier: Apache-2.0
"""The kernels over a grid: shapes, heights, types and algorithms against float64 on the same signs."""

from __future__ import annotations

import functools

import pytest

from tests.plugins.cuda import capi, layers
from tests.plugins.cuda.conftest import Record

pytestmark = pytest.mark.gpu

#: (in_features, rank, out_features): tiny and odd ones, ranks above both sides, then layers of real models
SHAPES = [
    (1, 1, 1),
    (31, 1, 33),
    (33, 257, 5),
    (64, 64, 64),
    (65, 33, 97),
    (96, 200, 40),
    (100, 31, 17),
    (256, 256, 256),
    (257, 300, 130),
    (255, 17, 513),
    (30, 5000, 20),
    (4096, 70, 34),
    (576, 1000, 192),
    (576, 376, 576),  # SmolLM2-135M
    (576, 424, 1536),
    (1536, 424, 576),
    (640, 320, 2048),  # Gemma-3
    (2048, 320, 640),
    (1152, 576, 6912),
    (6912, 992, 1152),
    (1024, 512, 3072),  # Qwen3-0.6B
    (3072, 768, 1024),
    (4096, 2944, 11008),  # Llama-2-7B
]
HEIGHTS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 64, 65, 130, 300]
TYPES = {"f16": capi.FLOAT16, "bf16": capi.BFLOAT16, "f32": capi.FLOAT32}
PAIRS = [("f16", "f16"), ("f16", "f32"), ("bf16", "bf16"), ("bf16", "f32")]


@functools.lru_cache(maxsize=12)
def layer_of(cuda: capi.Cuda, shape: tuple[int, int, int], scale: int, mid: bool, bias: bool) -> layers.Layer:
    return layers.make_layer(cuda, *shape, scale=scale, mid=mid, bias=bias)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}to{s[2]}r{s[1]}")
def test_grid(
    shape: tuple[int, int, int], pair: tuple[str, str], algorithm: int, cuda: capi.Cuda, record: Record
) -> None:
    x_type, y_type = (TYPES[name] for name in pair)
    # Scale types, mid scale and bias turn over the grid, so that each meets every algorithm and type.
    turn = SHAPES.index(shape) + PAIRS.index(pair)
    layer = layer_of(cuda, shape, list(TYPES.values())[turn % 3], turn % 2 == 0, turn % 5 != 0)
    for rows in HEIGHTS:
        x = layers.make_x(rows, shape[0], x_type, seed=1000 * turn + rows, outliers=rows % 2 == 1)
        run = layers.Run(cuda, [layer], x, y_type, algorithm)
        run.checked()
        record("grid", run)
