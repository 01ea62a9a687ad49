# SPDX-License-Identifier: Apache-2.0
"""The forms of a layer under compression compute the same function and train what they should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanoquant_edge.compression.factorize.factors import Factors
from nanoquant_edge.compression.tune.layers import LatentLinear, ScaledCore, module_at, replace_module
from tests.compression.support import signs_of

M, N, R = 9, 7, 5


def factors(seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    u, v = 3 * torch.randn(M, R, generator=generator), 3 * torch.randn(R, N, generator=generator)
    u[0, 0] = v[0, 0] = 0.0
    return Factors(u, v, torch.rand(M, generator=generator) + 0.5, torch.rand(N, generator=generator) + 0.5, 0.0)


def reference(f: Factors) -> torch.Tensor:
    """The dense weight, entry by entry."""
    weight = torch.zeros(M, N, dtype=torch.float64)
    for i in range(M):
        for j in range(N):
            core = sum((-1 if f.u_latent[i, k] < 0 else 1) * (-1 if f.v_latent[k, j] < 0 else 1) for k in range(R))
            weight[i, j] = float(f.scale_out[i]) * core * float(f.scale_in[j])
    return weight


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, M)])
def test_all_forms_compute_the_same(bias: torch.Tensor | None) -> None:
    f = factors()
    x = torch.randn(2, 3, N, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ reference(f).T + (0 if bias is None else bias.double())
    latent = LatentLinear(f, bias)
    hard = latent.harden()
    cpu = torch.device("cpu")
    for layer in (latent, ScaledCore(hard, cpu, torch.float32), ScaledCore(hard, cpu, torch.float32, packed=True)):
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    for weight in (f.dense(), hard.dense(cpu)):
        torch.testing.assert_close(weight.double(), reference(f), rtol=1e-6, atol=1e-6)


def test_the_backward_pass_of_a_sign_is_the_identity() -> None:
    # Latents of size 3 and of size 1e-8 alike: there is no clipping window.
    f = factors()
    f.u_latent[1] *= 1e-8
    layer = LatentLinear(f, None)
    x = torch.randn(4, N, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(4, M, generator=torch.Generator().manual_seed(3))
    (layer(x) * weights).sum().backward()
    u = torch.where(f.u_latent < 0, -1.0, 1.0).requires_grad_()
    v = torch.where(f.v_latent < 0, -1.0, 1.0).requires_grad_()
    s_out, s_in = f.scale_out.clone().requires_grad_(), f.scale_in.clone().requires_grad_()
    dense = s_out[:, None] * (u @ v) * s_in
    ((x @ dense.T) * weights).sum().backward()
    for ours, theirs in (
        (layer.u_latent, u),
        (layer.v_latent, v),
        (layer.scale_out, s_out),
        (layer.scale_in, s_in),
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_hardening_takes_a_copy() -> None:
    layer = LatentLinear(factors(), torch.ones(M))
    hard = layer.harden()
    before = [value.clone() for value in (*signs_of(hard), hard.scale_out, hard.scale_in, hard.bias)]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-2)
    u, v = signs_of(hard)
    after = (u, v, hard.scale_out, hard.scale_in, hard.bias)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert set(u.flatten().tolist()) == {-1, 1}
    assert u[0, 0] == v[0, 0] == 1  # a latent of exactly zero


def test_only_the_scales_of_a_core_can_be_trained() -> None:
    core = ScaledCore(LatentLinear(factors(), torch.ones(M)).harden(), torch.device("cpu"), torch.float32)
    assert {name for name, value in core.named_parameters() if value.requires_grad} == {"scale_out", "scale_in"}


def test_modules_are_found_and_replaced_by_path() -> None:
    root = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Identity())
    new = nn.Linear(2, 2)
    replace_module(root, "0.0", new)
    assert module_at(root, "0.0") is new
    replace_module(root, "1", new)
    assert root[1] is new
