# SPDX-License-Identifier: Apache-2.0
"""Scale distillation lowers the divergence, changes nothing but scales, and gives the dense model back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.execution.vocabulary import Head, distillation_loss
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.distillation import distill_scales
from nanoquant_edge.compression.tune.layers import LatentLinear, SignFactors, replace_module
from nanoquant_edge.compression.tune.optimizer import Outcome
from nanoquant_edge.system.progress import Progress
from tests.compression.support import (
    ORACLE,
    Killed,
    dense_llama,
    frozen_linear,
    linears_of,
    short_run,
    stop_at,
    teacher_of,
)


def start(**changes: Any) -> tuple[Any, dict[str, SignFactors], torch.Tensor]:
    model = dense_llama(**changes)
    factors = {}
    for name, layer in linears_of(model).items():
        m, n = layer.weight.shape
        sides = {"inputs": torch.ones(n), "outputs": torch.ones(m)}
        found = factorize(layer.weight, 32, **sides, settings=AdmmSettings(steps=10))
        factors[name] = LatentLinear(found, layer.bias).harden()
    return model, factors, torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(0))


def divergence(model: Any, factors: dict[str, SignFactors], ids: torch.Tensor) -> float:
    """Mean KL from all logits of two separate models."""
    student = copy.deepcopy(model)
    for name, value in factors.items():
        replace_module(student, name, frozen_linear(value))
    with torch.no_grad():
        p, q = model(ids).logits.double().log_softmax(-1), student(ids).logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def distil(model: Any, factors: dict[str, SignFactors], ids: torch.Tensor, **changes: Any) -> Outcome:
    return distilled(model, factors, ids, short_run(**changes))


def distilled(model: Any, factors: dict[str, SignFactors], ids: torch.Tensor, run: Run) -> Outcome:
    teacher = teacher_of(model, ids)
    return distill_scales(model, model.model.layers, factors, windows=ids, teacher=teacher, run=run)


@pytest.mark.parametrize("changes", [{}, ORACLE], ids=["tied", "untied-bias"])
def test_distillation_lowers_the_divergence_and_touches_scales_only(changes: dict) -> None:
    model, factors, ids = start(**changes)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    before = copy.deepcopy(factors)
    old = divergence(model, factors, ids)
    outcome = distil(model, factors, ids, kd_epochs=8, kd_lr=0.01)
    new = divergence(model, factors, ids)
    assert outcome.last < outcome.first
    assert new < 0.97 * old
    for name, value in factors.items():
        assert torch.equal(value.u_words, before[name].u_words)
        assert torch.equal(value.v_words, before[name].v_words)
        assert value.bias is None or torch.equal(value.bias, before[name].bias)
        assert not torch.equal(value.scale_out, before[name].scale_out)
        assert not torch.equal(value.scale_in, before[name].scale_in)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_reported_loss_is_the_divergence() -> None:
    model, factors, ids = start()
    expected = divergence(model, factors, ids)
    outcome = distil(model, factors, ids, kd_lr=0.0)
    assert outcome.first == pytest.approx(expected, rel=1e-4)


def test_a_student_equal_to_its_teacher_has_no_loss() -> None:
    model, factors, ids = start()
    for name, value in factors.items():
        replace_module(model, name, frozen_linear(value))
    assert distil(model, factors, ids, kd_lr=0.0).first == pytest.approx(0, abs=1e-6)


def test_no_epochs_change_nothing() -> None:
    model, factors, ids = start()
    before = copy.deepcopy(factors)
    assert math.isnan(distil(model, factors, ids, kd_epochs=0).first)
    assert all(torch.equal(before[name].scale_out, value.scale_out) for name, value in factors.items())


def test_an_interruption_gives_the_dense_model_back() -> None:
    model, factors, ids = start()
    modules = dict(model.named_modules())
    with pytest.raises(Killed):
        distilled(model, factors, ids, short_run(progress=Progress(stop_at(""))))
    assert dict(model.named_modules()) == modules
    assert not any(module.training for module in model.modules())


def test_an_explosion_keeps_the_scales() -> None:
    model, factors, ids = start()
    before = copy.deepcopy(factors)
    outcome = distil(model, factors, ids, kd_lr=1e38, kd_epochs=3)
    assert outcome.undone
    assert all(torch.equal(before[name].scale_in, value.scale_in) for name, value in factors.items())


@pytest.mark.parametrize(("relative", "decay"), [(False, 0.01), (True, 0.0)])
def test_weight_decay_is_the_official_one(relative: bool, decay: float) -> None:
    model, factors, ids = start(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # no logits, no gradient: only the decay is left
    before = copy.deepcopy(factors)
    distil(model, factors, ids, relative_lr=relative, kd_lr=0.5, kd_epochs=2, kd_batch=2)
    rates = [0.5 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]  # a cosine that ends at 0
    left = math.prod(1 - rate * decay for rate in rates)
    for name, value in factors.items():
        torch.testing.assert_close(value.scale_in, left * before[name].scale_in, rtol=1e-5, atol=0)
        torch.testing.assert_close(value.scale_out, left * before[name].scale_out, rtol=1e-5, atol=0)


@pytest.mark.parametrize("capped", [False, True])
def test_the_logits_cap_is_part_of_the_loss(capped: bool) -> None:
    hidden, teacher, head = torch.randn(5, 8), torch.randn(5, 8), torch.randn(30, 8)
    cap = 2.0 if capped else None
    p, q = ((x @ head.T).double() for x in (teacher, hidden))
    if cap is not None:
        p, q = cap * torch.tanh(p / cap), cap * torch.tanh(q / cap)
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    found = distillation_loss(hidden, teacher, Head(head, cap), backward=False)
    assert float(found) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_no_mask_is_made_where_the_blocks_have_theirs() -> None:
    model, factors, ids = start()
    plain = distil(model, factors, ids)
    model, factors, ids = start()

    def refuse(_model: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        if keywords.get("attention_mask") is not None:
            raise ValueError("this model makes its own masks")

    handle = model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert distil(model, factors, ids) == plain
    handle.remove()
