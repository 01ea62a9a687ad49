# SPDX-License-Identifier: Apache-2.0
"""From hardened factors to stored words: signs exact, scales balanced by a power of two and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanoquant_edge.compression.packed_layers import balance_power_of_two, pack_factors
from nanoquant_edge.compression.tune.layers import SignFactors
from nanoquant_edge.errors import NqEdgeError
from tests.compression.support import signs_of


def factors(out: float = 1.0, inner: float = 1.0, bias: bool = True) -> SignFactors:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(9, 37, generator=generator), torch.randn(37, 45, generator=generator)
    scale_out = out * (0.5 + torch.rand(9, generator=generator))
    scale_in = inner * (0.5 + torch.rand(45, generator=generator))
    return SignFactors(u, v, scale_out, scale_in, torch.randn(9, generator=generator) if bias else None)


@pytest.mark.parametrize(("out", "inner"), [(1e-9, 1e6), (3e7, 2e-8), (1.0, 1.0), (1e-20, 1e15)])
def test_balancing_is_exact_and_brings_both_together(out: float, inner: float) -> None:
    given = factors(out, inner)
    layer = pack_factors("layer", given, "float32")
    product = layer.scale_out.astype(np.float64)[:, None] * layer.scale_in.astype(np.float64)
    expected = given.scale_out.double().numpy()[:, None] * given.scale_in.double().numpy()
    np.testing.assert_array_equal(product, expected)  # not a single bit of rounding
    ratio = np.median(layer.scale_out) / np.median(layer.scale_in)
    assert 0.49 < ratio < 2.01
    u, v = signs_of(given)
    core = u.double().numpy() @ v.double().numpy()
    np.testing.assert_allclose(layer.dense(), expected * core, rtol=1e-12)
    np.testing.assert_array_equal(layer.bias, given.bias.numpy())


def test_scales_without_a_median_are_left_alone() -> None:
    ones = torch.ones(3)
    assert balance_power_of_two(torch.zeros(3), ones) == 0
    assert balance_power_of_two(ones, torch.full((3,), float("inf"))) == 0
    assert balance_power_of_two(ones, 16 * ones) == 2
    assert balance_power_of_two(-64 * ones, ones) == -3


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0.0)])
def test_scales_are_stored_in_their_type(dtype: str, rounding: float) -> None:
    given = factors(1e-7, 1e3)
    layer = pack_factors("layer", given, dtype)
    assert str(layer.scale_out.dtype) == str(layer.scale_in.dtype) == str(layer.bias.dtype) == dtype
    power = balance_power_of_two(given.scale_out, given.scale_in)
    wanted = given.scale_out.numpy() * 2.0**power
    np.testing.assert_allclose(layer.scale_out.astype(np.float32), wanted, rtol=1.01 * rounding or 1e-12)
    assert pack_factors("layer", factors(bias=False), dtype).bias is None


@pytest.mark.parametrize("bad", [float("nan"), 1e9])
def test_a_scale_that_does_not_fit_is_refused(bad: float) -> None:
    given = factors()
    given.scale_in[4] = bad
    with pytest.raises(NqEdgeError, match=r"scale_in of model\.x does not fit float16") as caught:
        pack_factors("model.x", given, "float16")
    assert caught.value.code == "NQ-NUMERIC"
    assert "bfloat16 or float32" in caught.value.hint
