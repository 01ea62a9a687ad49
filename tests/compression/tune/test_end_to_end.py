# SPDX-License-Identifier: Apache-2.0
"""Scales of a whole model, tuned on text: the divergence falls, signs and the dense model stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.recipe import Recipe
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.end_to_end import tune_end_to_end
from nanoquant_edge.compression.tune.layers import SignFactors
from tests.compression.support import dense_llama, linears_of

RUN = Run(recipe=Recipe.preset("quick", end_to_end_lr=0.05, end_to_end_batch=4))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return dense_llama().eval()


@pytest.fixture
def factors(model: Any) -> dict[str, SignFactors]:
    """Random signs at a rank that can say something, with scales of the right size."""
    torch.manual_seed(1)
    found = {}
    for name, layer in linears_of(model).items():
        m, n = layer.weight.shape
        rank = min(m, n)
        size = float(layer.weight.detach().std()) / rank**0.5
        found[name] = SignFactors(
            torch.randn(m, rank), torch.randn(rank, n), torch.full((m,), size**0.5), torch.full((n,), size**0.5), None
        )
    return found


def windows(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 300, (count, 24), generator=torch.Generator().manual_seed(seed))


def test_scales_come_nearer_to_the_dense_model_and_signs_stay(model: Any, factors: dict[str, SignFactors]) -> None:
    before = {name: copy.deepcopy(value) for name, value in factors.items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = model.model.layers
    first = tune_end_to_end(model, blocks, factors, windows=windows(32, 0), run=RUN)
    second = tune_end_to_end(model, blocks, factors, windows=windows(32, 0), run=RUN)
    assert second.last < first.last
    for name, value in factors.items():
        assert torch.equal(value.u_words, before[name].u_words) and torch.equal(value.v_words, before[name].v_words)
        assert not torch.equal(value.scale_out, before[name].scale_out)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())
