# SPDX-License-Identifier: Apache-2.0
"""Round-to-nearest: errors within half a step, exact ends, odd widths, and the model given back."""

from __future__ import annotations

import pytest
import torch

from benchmarks.round_to_nearest import GROUP, rounded, rounded_layers, stored_bits
from tests.compression.support import dense_llama, linears_of


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [GROUP, 3 * GROUP, 200, 40])
def test_errors_are_within_half_a_step(bits: int, columns: int) -> None:
    w = torch.randn(5, columns, generator=torch.Generator().manual_seed(bits))
    found = rounded(w, bits)
    for start in range(0, columns, GROUP):
        part, other = w[:, start : start + GROUP], found[:, start : start + GROUP]
        step = (part.amax(1) - part.amin(1)) / (2**bits - 1)
        assert bool(((part - other).abs().amax(1) <= 0.51 * step + 5e-3).all())
        assert all(len(row.unique()) <= 2**bits for row in other)


def test_a_constant_group_stays_as_it_is() -> None:
    assert torch.equal(rounded(torch.full((2, GROUP), 0.5), 2), torch.full((2, GROUP), 0.5))


def test_bits_count_scales_and_least_values() -> None:
    assert stored_bits((3, GROUP), 4) == 3 * (GROUP * 4 + 32)
    assert stored_bits((3, GROUP + 1), 4) == 3 * ((GROUP + 1) * 4 + 64)


def test_the_model_is_given_back() -> None:
    model = dense_llama()
    names = list(linears_of(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with rounded_layers(model, names, 2):
        assert all(not torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"]) for name in names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
