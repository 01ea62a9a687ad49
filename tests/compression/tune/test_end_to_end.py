# SPDX-License-Identifier: Apache-2.0
"""Scales of a whole model, tuned on text: the divergence falls, signs and the dense model stay."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.factorize.signs import unpacked_signs
from nanoquant_edge.compression.packed_layers import pack_factors
from nanoquant_edge.compression.recipe import Recipe
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune import layers
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


def divergence(model: Any, factors: dict[str, SignFactors], text: torch.Tensor) -> float:
    """Mean KL of the dense model to the one with these factors."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in factors.items():
            other.get_submodule(name).weight.copy_(value.dense(torch.device("cpu")))
        wanted, found = (one(text).logits.log_softmax(-1) for one in (model, other))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_signs_flip_where_that_helps_on_text_that_was_held_back(model: Any, factors: dict[str, SignFactors]) -> None:
    before, frozen = copy.deepcopy(factors), copy.deepcopy(factors)
    text = windows(64, 0)
    run = replace(RUN, recipe=replace(RUN.recipe, end_to_end_sign_lr=0.2))
    tuned = tune_end_to_end(model, model.model.layers, factors, windows=text, run=run)
    still = tune_end_to_end(model, model.model.layers, frozen, windows=text[:60], run=RUN)
    flips = sum(
        int((unpacked_signs(one, size) != unpacked_signs(other, size)).sum())
        for name, value in factors.items()
        for one, other, size in (
            (value.u_words, before[name].u_words, len(value.v_words)),
            (value.v_words, before[name].v_words, value.in_features),
        )
    )
    signs = sum(len(value.v_words) * (len(value.u_words) + value.in_features) for value in factors.values())
    assert tuned.flips == flips / signs > 0
    assert still.flips == still.taken_back == 0
    assert divergence(model, factors, text[60:]) < divergence(model, frozen, text[60:])


def test_flips_that_do_harm_are_taken_back(
    model: Any, factors: dict[str, SignFactors], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(factors)
    # The gradient turned round: every flip does harm.
    monkeypatch.setattr(layers._StraightThroughSign, "backward", lambda ctx, gradient: (-gradient.to(ctx.dtype), None))
    run = replace(RUN, recipe=replace(RUN.recipe, end_to_end_sign_lr=0.5, end_to_end_lr=0.0))
    tuned = tune_end_to_end(model, model.model.layers, factors, windows=windows(64, 0), run=run)
    assert tuned.taken_back == 2
    assert tuned.flips == 0
    for name, value in factors.items():
        assert torch.equal(value.u_words, before[name].u_words) and torch.equal(value.v_words, before[name].v_words)


@pytest.mark.parametrize("signs", [0.0, 0.05])
def test_a_scale_a_rank_begins_as_one_and_is_stored(model: Any, factors: dict[str, SignFactors], signs: float) -> None:
    start, text = copy.deepcopy(factors), windows(32, 0)
    recipe = replace(RUN.recipe, end_to_end_mid=True, end_to_end_sign_lr=signs)
    nothing = replace(recipe, end_to_end_lr=0.0, end_to_end_sign_lr=0.0)
    tune_end_to_end(model, model.model.layers, start, windows=text, run=replace(RUN, recipe=nothing))
    for name, value in start.items():
        assert torch.equal(value.scale_mid, torch.ones(len(value.v_words)))
        torch.testing.assert_close(value.dense(torch.device("cpu")), factors[name].dense(torch.device("cpu")))
    before = divergence(model, factors, text)
    tune_end_to_end(model, model.model.layers, factors, windows=text, run=replace(RUN, recipe=recipe))
    assert divergence(model, factors, text) < before
    for name, value in factors.items():
        assert not torch.equal(value.scale_mid, torch.ones_like(value.scale_mid))
        packed = pack_factors(name, value, "float32")
        assert packed.scale_mid.shape == (packed.rank,)
        torch.testing.assert_close(torch.from_numpy(packed.dense()).float(), value.dense(torch.device("cpu")))
