# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM under dense factors: against exact solves in float64, against the plain one, and its symmetries (19.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nanoquant_edge.compression.factorize.factors import Factors
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.lb_admm_curved import Curvature, CurvedFactorState, factorize_curved
from nanoquant_edge.compression.factorize.metric import Metric, metric
from nanoquant_edge.compression.factorize.problem import KeptProblems
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.errors import NqEdgeError
from tests.compression.factorize.test_lb_admm import structured

CPU = torch.device("cpu")


def correlated(size: int, seed: int) -> Tensor:
    """A factor of uneven diagonal whose channels share a few directions, a fifth of it diagonal."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator) * (1 + torch.arange(size) / 4) ** -0.7
    root = torch.exp(0.5 * torch.randn(size, generator=generator))
    total = mix @ mix.T
    total = 0.8 * total / total.diagonal().mean() + 0.2 * torch.eye(size)
    return root[:, None] * total * root


def curved(w: Tensor, r: Tensor, l: Tensor, rank: int, seed: int = 0, **options: object) -> Factors:  # noqa: E741
    """`factorize_curved` with the settings as keywords and unit sizes."""
    settings = AdmmSettings(**options)  # type: ignore[arg-type]
    return factorize_curved(w, rank, curvature=around(r, l), settings=settings, seed=seed)


def around(r: Tensor, l: Tensor, *units: float) -> Curvature:  # noqa: E741
    """The curvature of two factors."""
    return Curvature(metric(r), metric(l), *units)


def unit_half(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root of the diagonal, brought to mean square 1, and the unit-diagonal form to the power 1/2 with its trace."""
    diagonal = np.diag(factor)
    values, vectors = np.linalg.eigh(factor / np.sqrt(np.outer(diagonal, diagonal)))
    half = (vectors * np.sqrt(values)) @ vectors.T
    return np.sqrt(diagonal / diagonal.mean()), half * len(factor) / np.trace(half)


def numpy_error(w: Tensor, r: Tensor, l: Tensor, rank: int, steps: int, seed: int) -> float:  # noqa: E741
    """Curved error of docs/METHOD.md, section 10, in float64, systems solved as one Kronecker product; m >= n."""
    rng = np.random.default_rng(seed)
    d_in, inp = unit_half(r.double().numpy())
    d_out, out = unit_half(l.double().numpy())
    target = d_out[:, None] * w.double().numpy() * d_in
    size = np.sqrt((target**2).mean())
    target /= size

    def project(x: np.ndarray) -> np.ndarray:
        u, s, v = np.linalg.svd(np.abs(x), full_matrices=False)
        return np.where(x < 0, -1.0, 1.0) * np.abs(s[0] * np.outer(u[:, 0], v[0]))

    def solved(side: np.ndarray, gram: np.ndarray, damping: float, right: np.ndarray) -> np.ndarray:
        system = np.kron(side, gram) + damping * np.eye(len(side) * len(gram))
        return np.linalg.solve(system, right.reshape(-1)).reshape(right.shape)

    a, b = rng.standard_normal((w.shape[0], rank)), rng.standard_normal((rank, w.shape[1]))
    z_a, z_b = project(a), project(b)
    l_a, l_b = a - z_a, b - z_b
    for k in range(steps):
        rho = k / steps
        b_n = z_b / np.linalg.norm(z_b, axis=1, keepdims=True)
        a_n = z_a / np.linalg.norm(z_a, axis=0, keepdims=True)
        a = solved(out, b_n @ inp @ b_n.T, rho + 0.03, out @ target @ inp @ b_n.T + rho * (z_a - l_a))
        right = (a_n.T @ out @ target @ inp + rho * (z_b - l_b)).T
        b = solved(inp, a_n.T @ out @ a_n, rho + 0.03, right).T
        z_a, z_b = project(a + l_a), project(b + l_b)
        l_a, l_b = l_a + a - z_a, l_b + b - z_b
    a_hat, b_hat = z_a / d_out[:, None], z_b / d_in
    eta = np.sqrt(np.linalg.norm(b_hat) / np.linalg.norm(a_hat))
    s_1 = np.abs(eta * a_hat / np.linalg.norm(z_a, axis=0)).mean(1)
    s_2 = np.abs(b_hat / eta).mean(0)
    signs = np.where(a + l_a < 0, -1.0, 1.0) @ np.where(b + l_b < 0, -1.0, 1.0)
    missed = target - d_out[:, None] * s_1[:, None] * signs * s_2 * d_in
    return float(np.sqrt(np.trace(out @ missed @ inp @ missed.T) / np.trace(out @ target @ inp @ target.T)))


def test_errors_equal_exact_solves_in_float64() -> None:
    w, r, l = structured(36, 24), correlated(24, 1), correlated(36, 2)  # noqa: E741
    reference = [numpy_error(w, r, l, 16, 40, seed) for seed in range(4)]
    ours = [curved(w, r, l, 16, seed, steps=40).error for seed in range(8)]
    # Another random start, so the means are compared.
    assert np.mean(ours) == pytest.approx(np.mean(reference), rel=0.03)


def whole(side: Metric) -> Tensor:
    """A metric as a matrix."""
    return side.applied(torch.eye(len(side.diagonal)))


@pytest.mark.parametrize("kept", [(48, 40), (12, 10), (1, 1)])
@pytest.mark.parametrize(("steps", "bound"), [(1, 0.25), (2, 0.08), (8, 1e-4)])
def test_conjugate_gradients_come_near_the_exact_solution(steps: int, bound: float, kept: tuple[int, int]) -> None:
    this_side, other_side = metric(correlated(48, 1), kept=kept[0]), metric(correlated(40, 2), kept=kept[1])
    settings = AdmmSettings()
    factor = CurvedFactorState(24, kept, channels=48, other_channels=40, device=CPU, settings=settings, cg_steps=steps)
    factor.load(this_side, other_side)
    factor.start(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    design = torch.nn.functional.normalize(torch.randn(24, 40, generator=generator))
    target = torch.randn(40, 48, generator=generator)
    rho = torch.tensor([0.2])
    full = [whole(side) for side in (this_side, other_side)]
    gram = design @ full[1] @ design.T
    right = design @ target + rho * (factor.signed - factor.dual)
    system = torch.kron(full[0].double(), gram.double()) + 0.23 * torch.eye(24 * 48)
    exact = torch.linalg.solve(system, right.T.reshape(-1).double()).reshape(48, 24).T
    start = float((factor.primal - exact).norm())
    found, failed = factor.solve(design, target, rho=rho, ridge=0.03, careful=False)
    assert float((found - exact).norm()) < bound * start
    assert int(failed) == 0
    torch.testing.assert_close(found @ this_side.vectors, factor.along, rtol=1e-4, atol=1e-4)


def test_without_correlation_it_is_the_plain_method() -> None:
    w, i, o = structured(96, 64), torch.rand(64) + 0.5, torch.rand(96) + 0.5
    i, o = i / i.mean(), o / o.mean()
    settings = AdmmSettings(steps=25)
    plain = factorize(w, 40, inputs=i, outputs=o, settings=settings)
    same = curved(w, torch.diag(i), torch.diag(o), 40, steps=25)
    torch.testing.assert_close(same.u_latent, plain.u_latent, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same.dense(), plain.dense(), rtol=1e-3, atol=1e-4)
    assert same.error == pytest.approx(plain.error, rel=1e-4)


def curved_error(w: Tensor, r: Tensor, l: Tensor, factors: Factors) -> float:  # noqa: E741
    (d_in, inp), (d_out, out) = (unit_half(value.double().numpy()) for value in (r, l))
    missed, target = (d_out[:, None] * value.double().numpy() * d_in for value in (w - factors.dense(), w))
    return float(np.sqrt(np.trace(out @ missed @ inp @ missed.T) / np.trace(out @ target @ inp @ target.T)))


def test_the_error_is_that_of_the_factors_and_below_the_diagonal_methods() -> None:
    w, r, l = structured(128, 96), correlated(96, 1), correlated(128, 2)  # noqa: E741
    plain = factorize(w, 48, inputs=r.diagonal(), outputs=l.diagonal(), settings=AdmmSettings(steps=60))
    found = curved(w, r, l, 48, steps=60)
    assert found.error == pytest.approx(curved_error(w, r, l, found), rel=1e-4)
    assert found.error < 0.95 * curved_error(w, r, l, plain)


def test_the_transposed_problem_has_the_same_answer() -> None:
    w, r, l = structured(64, 48), correlated(48, 1), correlated(64, 2)  # noqa: E741
    tall, wide = curved(w, r, l, 32, steps=20), curved(w.T, l, r, 32, steps=20)
    torch.testing.assert_close(wide.dense(), tall.dense().T)
    assert wide.error == tall.error


def test_units_of_the_factors_do_not_matter_and_sizes_set_the_latents() -> None:
    w, r, l = structured(64, 48), correlated(48, 1), correlated(64, 2)  # noqa: E741
    one, other = (
        factorize_curved(w, 32, curvature=around(t * r, l / t, t, t), settings=AdmmSettings(steps=20))
        for t in (1.0, 16.0)
    )
    assert other.error == pytest.approx(one.error, rel=0.02)
    assert float(other.u_latent.abs().median() / one.u_latent.abs().median()) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"solver": "products"}])
def test_faster_products_cost_nothing(options: dict) -> None:
    w, r, l = structured(96, 64), correlated(64, 1), correlated(96, 2)  # noqa: E741
    exact = [curved(w, r, l, 40, seed, steps=40).error for seed in range(3)]
    faster = [curved(w, r, l, 40, seed, steps=40, **options).error for seed in range(3)]
    assert np.mean(faster) == pytest.approx(np.mean(exact), rel=0.02)


def test_kept_state_serves_another_weight_of_the_shape() -> None:
    problems = KeptProblems()
    settings = AdmmSettings(steps=10)
    for seed in range(2):
        w, r, l = structured(48, 32, seed), correlated(32, seed), correlated(48, 5 + seed)  # noqa: E741
        again = factorize_curved(w, 24, curvature=around(r, l), settings=settings, problems=problems)
        fresh = factorize_curved(w, 24, curvature=around(r, l), settings=settings)
        torch.testing.assert_close(again.dense(), fresh.dense())
    assert len(problems.all()) == 1


@pytest.mark.parametrize("at", range(3))
def test_what_is_not_finite_is_refused(at: int) -> None:
    weight, inputs, outputs = torch.ones(4, 3), metric(torch.eye(3)), metric(torch.eye(4))
    (weight, inputs.vectors, outputs.diagonal)[at].view(-1)[1] = float("nan")
    with pytest.raises(NqEdgeError, match="NaN or infinity") as caught:
        factorize_curved(weight, 2, curvature=Curvature(inputs, outputs), settings=AdmmSettings(steps=1))
    assert caught.value.code == "NQ-NUMERIC"


def test_a_zero_weight_stays_zero() -> None:
    found = curved(torch.zeros(48, 32), correlated(32, 1), correlated(48, 2), 16, steps=5)
    assert float(found.dense().abs().max()) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_iteration_gives_the_same_error_on_a_gpu() -> None:
    w, r, l = (value.cuda() for value in (structured(384, 256), correlated(256, 1), correlated(384, 2)))  # noqa: E741
    reused = KeptProblems()
    settings = AdmmSettings(steps=60, svid_steps=2)
    captured, eager = (
        [
            factorize_curved(w, 128, curvature=around(r, l), settings=settings, seed=seed, problems=problems).error
            for seed in range(3)
        ]
        for problems in (reused, None)
    )
    assert np.mean(captured) == pytest.approx(np.mean(eager), rel=0.02)
