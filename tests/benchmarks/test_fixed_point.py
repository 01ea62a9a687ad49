# SPDX-License-Identifier: Apache-2.0
"""The rounding of sums that the byte-table kernels are built on."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fixed_point import error


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_sixteen_bits_and_64_columns_hold_the_limit_and_one_unit_for_all_does_not(factor: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=1536)
    x[7::64] *= factor
    assert error(x, rng, group=64, bits=16) < 5e-5
    assert error(x, rng, group=1536, bits=14) > 1e-4
