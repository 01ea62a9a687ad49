# SPDX-License-Identifier: Apache-2.0
"""Which type scales are exported in, and the power of two that makes float32 scales fit float16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx.scales import export_scales
from nanoquant_edge.formats.checkpoint import PackedLayer
from tests.tiny import random_layer

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def with_scales(out: np.ndarray, inner: np.ndarray, **others: np.ndarray) -> PackedLayer:
    base = random_layer(np.random.default_rng(0), len(out), len(inner), 5)
    return PackedLayer(base.u_packed, base.v_packed, out, inner, **others)


@pytest.mark.parametrize("activation", [FLOAT, HALF, BRAIN])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_scales_stay_bit_for_bit(activation: ir.DataType, dtype: type) -> None:
    layer = random_layer(np.random.default_rng(1), 9, 7, 5, dtype, bias=True, mid=True)
    scales = export_scales("l", layer, activation)
    for part in ("scale_in", "scale_mid", "scale_out", "bias"):
        assert getattr(scales, part).tobytes() == getattr(layer, part).tobytes()
        assert getattr(scales, part).dtype == dtype


def test_float32_scales_stay_in_a_float32_graph() -> None:
    layer = random_layer(np.random.default_rng(1), 9, 7, 5, np.float32)
    scales = export_scales("l", layer, FLOAT)
    assert scales.scale_in.dtype == np.float32 and (scales.scale_in == layer.scale_in).all()
    assert scales.scale_mid is None and scales.bias is None


@pytest.mark.parametrize("exponent", [-60, -20, 0, 20, 60])
def test_balancing_changes_no_product(exponent: int) -> None:
    rng = np.random.default_rng(2)
    out = np.ldexp(rng.uniform(0.5, 2, 9), exponent).astype(np.float32)
    inner = np.ldexp(rng.uniform(0.5, 2, 7), -exponent).astype(np.float32)
    scales = export_scales("l", with_scales(out, inner), HALF)
    assert scales.scale_in.dtype == scales.scale_out.dtype == np.float16
    expected = np.outer(out.astype(np.float64), inner)
    found = np.outer(scales.scale_out.astype(np.float64), scales.scale_in)
    assert (np.abs(found - expected) <= 2**-10 * np.abs(expected)).all()


def test_mixed_types_become_one() -> None:
    layer = with_scales(np.ones(9, np.float16), np.ones(7, np.float16), bias=np.ones(9, np.float32))
    assert export_scales("l", layer, FLOAT).bias.dtype == np.float32
    assert export_scales("l", layer, FLOAT).scale_out.dtype == np.float32
    assert export_scales("l", layer, BRAIN).bias.dtype == np.float16


def test_all_zero_scales_are_not_balanced() -> None:
    scales = export_scales("l", with_scales(np.zeros(9, np.float32), np.ones(7, np.float32)), HALF)
    assert not scales.scale_out.any() and (scales.scale_in == 1).all()


def test_scales_that_float16_cannot_hold_are_refused() -> None:
    wide = with_scales(np.full(9, 1e15, np.float32), np.full(7, 1e15, np.float32))
    with pytest.raises(NqEdgeError, match=r"l\.scale_(out|in) .* does not fit float16") as caught:
        export_scales("l", wide, HALF)
    assert caught.value.code == "NQ-NUMERIC" and "float32" in caught.value.hint
    tiny = with_scales(np.full(9, 1e-12, np.float32), np.full(7, 1e-12, np.float32))
    with pytest.raises(NqEdgeError, match="does not fit float16"):
        export_scales("l", tiny, BRAIN)
    assert export_scales("l", wide, FLOAT).scale_out[0] == np.float32(1e15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_scale_that_is_not_finite_is_refused(dtype: type) -> None:
    inner = np.ones(7, dtype)
    inner[3] = np.inf
    with pytest.raises(NqEdgeError, match=r"l\.scale_in holds a value that is not finite"):
        export_scales("l", with_scales(np.ones(9, dtype), inner), FLOAT)
