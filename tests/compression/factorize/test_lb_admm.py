# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM against a second implementation in NumPy, known figures, its symmetries (docs/METHOD.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nanoquant_edge.compression.factorize import factor_state, lb_admm
from nanoquant_edge.compression.factorize.factor_state import rank_one_magnitudes
from nanoquant_edge.compression.factorize.factors import Factors, sign
from nanoquant_edge.compression.factorize.problem import KeptProblems, Problem
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.errors import NqEdgeError


def factorize(w: torch.Tensor, i: torch.Tensor, o: torch.Tensor, rank: int, **options: object) -> Factors:
    """`lb_admm.factorize` with the settings as keywords."""
    seed = options.pop("seed", 0)
    return lb_admm.factorize(w, rank, inputs=i, outputs=o, settings=AdmmSettings(**options), seed=seed)  # type: ignore[arg-type]


def gaussian(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Case G: no structure at all."""
    return 0.02 * torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def structured(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Case S: decaying spectrum, uneven rows and columns."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    w = (left * (1 + np.arange(k) / 40) ** -0.8) @ right.T
    w *= np.exp(0.3 * rng.standard_normal((m, 1))) * np.exp(0.3 * rng.standard_normal((1, n)))
    return torch.from_numpy(0.02 * w / w.std()).float()


def plain(weight: torch.Tensor, rank: int, **options: object) -> Factors:
    return factorize(weight, torch.ones(weight.shape[1]), torch.ones(weight.shape[0]), rank, **options)  # type: ignore[arg-type]


def numpy_error(w: np.ndarray, i: np.ndarray, o: np.ndarray, rank: int, steps: int, seed: int) -> float:
    """Weighted error of sections 5.1 to 5.3 written out in float64, with exact singular vectors; m >= n."""
    rng = np.random.default_rng(seed)
    d_in, d_out = np.sqrt(i), np.sqrt(o)
    target = d_out[:, None] * w * d_in
    size = np.sqrt((target**2).mean())
    target /= size

    def project(x: np.ndarray) -> np.ndarray:
        u, s, v = np.linalg.svd(np.abs(x), full_matrices=False)
        return np.where(x < 0, -1.0, 1.0) * np.abs(s[0] * np.outer(u[:, 0], v[0]))

    a, b = rng.standard_normal((w.shape[0], rank)), rng.standard_normal((rank, w.shape[1]))
    z_a, z_b = project(a), project(b)
    l_a, l_b = a - z_a, b - z_b
    eye = np.eye(rank)
    for k in range(steps):
        rho = k / steps
        b_n = z_b / np.linalg.norm(z_b, axis=1, keepdims=True)
        a_n = z_a / np.linalg.norm(z_a, axis=0, keepdims=True)
        a = np.linalg.solve(b_n @ b_n.T + (rho + 0.03) * eye, b_n @ target.T + rho * (z_a - l_a).T).T
        b = np.linalg.solve(a_n.T @ a_n + (rho + 0.03) * eye, a_n.T @ target + rho * (z_b - l_b))
        z_a, z_b = project(a + l_a), project(b + l_b)
        l_a, l_b = l_a + a - z_a, l_b + b - z_b
    a, b, z_a, z_b, l_a, l_b, target = (size * part for part in (a, b, z_a, z_b, l_a, l_b, target))
    a_hat, b_hat = z_a / d_out[:, None], z_b / d_in
    eta = np.sqrt(np.linalg.norm(b_hat) / np.linalg.norm(a_hat))
    s_1 = np.abs(eta * a_hat / np.linalg.norm(z_a, axis=0)).mean(1)
    s_2 = np.abs(b_hat / eta).mean(0)
    signs = np.where(a + l_a < 0, -1.0, 1.0) @ np.where(b + l_b < 0, -1.0, 1.0)
    residual = target - d_out[:, None] * s_1[:, None] * signs * s_2 * d_in
    return float(np.linalg.norm(residual) / np.linalg.norm(target))


@pytest.mark.parametrize("steps", [1, 10, 60])
def test_errors_equal_a_second_implementation(steps: int) -> None:
    w = structured(96, 64).numpy()
    rng = np.random.default_rng(1)
    i, o = (np.exp(rng.standard_normal(size)) for size in (64, 96))
    reference = [numpy_error(w.astype(float), i, o, 40, steps, seed) for seed in range(4)]
    weights = torch.from_numpy(w), torch.from_numpy(i).float(), torch.from_numpy(o).float()
    ours = [factorize(*weights, 40, steps=steps, seed=seed).error for seed in range(4)]
    # Another random start, so the means are compared.
    assert np.mean(ours) == pytest.approx(np.mean(reference), rel=0.05 if steps < 10 else 0.02)


@pytest.mark.parametrize(("make", "error"), [(gaussian, 0.588), (structured, 0.535)], ids=["g", "s"])
def test_all_steps_end_at_the_errors_of_a_quarter_of_the_size(make: Callable[..., torch.Tensor], error: float) -> None:
    """Seeds differ by 0.001 here. What the known cases below end at, in a second instead of sixteen."""
    weight = make(192, 128)
    factors = plain(weight, 72)
    assert factors.error == pytest.approx(error, abs=0.002)
    residual = (weight - factors.dense()).norm() / weight.norm()
    assert float(residual) == pytest.approx(factors.error, rel=1e-5)


@pytest.mark.slow
def test_case_g_reaches_the_known_error() -> None:
    assert plain(gaussian(768, 512), 288).error == pytest.approx(0.5907, abs=0.0015)


@pytest.mark.slow
def test_case_s_lies_in_the_known_range() -> None:
    assert 0.45 < plain(structured(768, 512), 288).error < 0.465


def test_more_rank_is_less_error_even_above_the_full_rank() -> None:
    weight = structured(192, 128)
    errors = [plain(weight, rank, steps=60).error for rank in (16, 48, 96, 128, 192, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.6
    assert errors[-1] < 0.75 * errors[3]


def test_the_transposed_problem_has_the_same_answer() -> None:
    weight = structured(128, 96)
    i, o = torch.rand(96) + 0.1, torch.rand(128) + 0.1
    tall = factorize(weight, i, o, 64, steps=30)
    wide = factorize(weight.T, o, i, 64, steps=30)
    torch.testing.assert_close(wide.dense(), tall.dense().T)
    assert wide.u_latent.shape == (96, 64)
    assert wide.v_latent.shape == (64, 128)
    assert wide.error == tall.error


@pytest.mark.parametrize("t", [1e-4, 1e5])
def test_units_of_the_importances_move_the_parts_but_not_the_product(t: float) -> None:
    weight = structured(128, 96)
    generator = torch.Generator().manual_seed(3)
    i, o = torch.rand(96, generator=generator) + 0.1, torch.rand(128, generator=generator) + 0.1
    before, after = factorize(weight, i, o, 64, steps=50), factorize(weight, t * i, t * o, 64, steps=50)
    assert after.error == pytest.approx(before.error, rel=0.005)

    def ratio(name: str) -> float:
        return float(getattr(after, name).abs().median() / getattr(before, name).abs().median())

    assert ratio("u_latent") == pytest.approx(t**0.5, rel=0.02)
    assert ratio("v_latent") == pytest.approx(t**0.5, rel=0.02)
    assert ratio("scale_out") == pytest.approx(t**-0.5, rel=0.02)
    assert ratio("scale_in") == pytest.approx(t**0.5, rel=0.02)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3])
def test_short_schedules_do_not_depend_on_the_size_of_the_problem(size: float) -> None:
    # Importances of real models make a target of 1e-4; a start of another size cost 10 % of error at 40 steps.
    weight = structured(128, 96)
    small, one = (plain(scale * weight, 48, steps=20).error for scale in (size, 1.0))
    assert small == pytest.approx(one, rel=0.002)


def test_one_power_iteration_is_enough_as_it_starts_where_the_last_ended() -> None:
    weight = structured(192, 128)
    many, one = (plain(weight, 64, steps=100, svid_steps=steps).error for steps in (20, 1))
    assert one == pytest.approx(many, rel=0.005)


def test_latents_are_balanced() -> None:
    # Importances that differ by 1e6 between inputs and outputs would otherwise leave one side untrainable.
    factors = factorize(structured(128, 96), 1e6 * torch.ones(96), torch.ones(128), 64, steps=50)
    sizes = [float(latent.square().mean().sqrt()) for latent in (factors.u_latent, factors.v_latent)]
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_importance_decides_what_is_kept() -> None:
    weight = gaussian(128, 96)
    importance = torch.ones(96)
    importance[:8] = 400.0
    even, uneven = (factorize(weight, i, torch.ones(128), 32, steps=60) for i in (torch.ones(96), importance))

    def column_error(factors: Factors) -> float:
        return float((weight - factors.dense())[:, :8].norm() / weight[:, :8].norm())

    assert column_error(uneven) < 0.6 * column_error(even)


@pytest.mark.parametrize("zero_side", ["in", "out"])
def test_all_zero_importances_count_as_ones(zero_side: str) -> None:
    weight = gaussian(64, 48)
    i = torch.zeros(48) if zero_side == "in" else torch.ones(48)
    o = torch.zeros(64) if zero_side == "out" else torch.ones(64)
    torch.testing.assert_close(factorize(weight, i, o, 32, steps=20).dense(), plain(weight, 32, steps=20).dense())


def test_a_zero_weight_and_zero_channels_stay_finite() -> None:
    zero = plain(torch.zeros(48, 32), 32, steps=5)
    assert float(zero.dense().abs().max()) == 0
    weight = gaussian(48, 32)
    weight[3], weight[:, 5] = 0, 0
    importance = torch.ones(32)
    importance[7] = 0
    factors = factorize(weight, importance, torch.ones(48), 32, steps=20)
    for name in ("u_latent", "v_latent", "scale_out", "scale_in"):
        assert bool(torch.isfinite(getattr(factors, name)).all()), name


def test_bfloat16_products_cost_nothing() -> None:
    weight = structured(192, 128)
    exact, rounded = (plain(weight, 64, steps=100, dtype=t).error for t in (torch.float32, torch.bfloat16))
    assert rounded == pytest.approx(exact, rel=0.01)


def test_the_seed_decides() -> None:
    weight = gaussian(64, 48)
    first, again, other = (plain(weight, 32, steps=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.u_latent, again.u_latent)
    assert torch.equal(first.scale_in, again.scale_in)
    assert not torch.equal(first.u_latent, other.u_latent)


def test_sign_of_zero_is_plus_one() -> None:
    found = sign(torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=torch.bfloat16))
    assert found.tolist() == [-1, 1, 1, 1]
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(("steps", "bound"), [(5, 1e-4), (30, 1e-6)])
def test_power_iteration_finds_the_leading_pair(steps: int, bound: float) -> None:
    x = torch.randn(60, 45, generator=torch.Generator().manual_seed(0)).double()
    left, right = rank_one_magnitudes(x, torch.randn(45, generator=torch.Generator().manual_seed(1)).double(), steps)
    u, s, v = np.linalg.svd(np.abs(x.numpy()))
    best = s[0] * np.abs(np.outer(u[:, 0], v[0]))
    assert np.linalg.norm(torch.outer(left, right).numpy() - best) / np.linalg.norm(best) < bound
    assert bool((left >= 0).all())
    assert bool((right >= 0).all())


def test_power_iteration_of_zeros_is_finite() -> None:
    left, right = rank_one_magnitudes(torch.zeros(4, 3), torch.zeros(3), 5)
    assert float(torch.outer(left, right).abs().max()) == 0


@pytest.mark.parametrize("at", range(3))
def test_what_is_not_finite_is_refused(at: int) -> None:
    values = [torch.ones(4, 3), torch.ones(3), torch.ones(4)]
    values[at].view(-1)[1] = float("nan") if at else float("inf")
    with pytest.raises(NqEdgeError, match="NaN or infinity") as caught:
        factorize(*values, 2, steps=1)
    assert caught.value.code == "NQ-NUMERIC"


@pytest.mark.parametrize(("m", "n", "rank"), [(96, 64, 32), (64, 96, 96), (96, 96, 128)])
def test_products_solve_as_well_as_cholesky(m: int, n: int, rank: int) -> None:
    # Rounding sends the iteration elsewhere, as another seed does; the mean over seeds must not move.
    means = [
        sum(plain(structured(m, n), rank, steps=120, solver=solver, seed=seed).error for seed in range(3)) / 3
        for solver in ("cholesky", "products")
    ]
    assert means[1] == pytest.approx(means[0], rel=0.01)


def test_products_that_end_in_nan_are_done_again_by_cholesky(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(structured(64, 48), 32, steps=30, solver="cholesky")
    monkeypatch.setattr(
        factor_state, "solve_by_products", lambda _matrix, right_side, *_limits: right_side * float("nan")
    )
    found = plain(structured(64, 48), 32, steps=30, solver="products")
    assert torch.equal(found.u_latent, expected.u_latent)


def test_factorizations_with_kept_problems_are_those_without() -> None:
    problems = KeptProblems()
    settings = AdmmSettings(steps=12)
    for seed, shape in enumerate([(24, 16), (16, 24), (24, 16)]):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        sides = {"inputs": torch.rand(shape[1]), "outputs": torch.rand(shape[0])}
        ours = lb_admm.factorize(w, 8, **sides, settings=settings, problems=problems)
        fresh = lb_admm.factorize(w, 8, **sides, settings=settings)
        assert ours.error == fresh.error
        assert torch.equal(ours.u_latent, fresh.u_latent)
        assert torch.equal(ours.scale_in, fresh.scale_in)
    assert len(problems.all()) == 1  # a wide layer is the transposed problem of a tall one


def test_a_failed_cholesky_falls_back_to_a_general_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    expected = plain(w, 8, steps=6)
    real, calls = torch.linalg.cholesky_ex, []

    def failing(matrix: torch.Tensor) -> object:
        calls.append(1)
        factor, info = real(matrix)
        return (factor * float("nan"), info + 3) if len(calls) % 4 == 0 else (factor, info)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    found = plain(w, 8, steps=6)
    assert len(calls) > 12  # the fast pass, then the one that looks
    assert found.error == pytest.approx(expected.error, rel=1e-3)


def test_two_processes_share_only_large_layers() -> None:
    shared = AdmmSettings(share_sides=True)
    large, small = 1984 * (4096 + 4096), 384 * (1536 + 576)
    assert shared.shares_sides(large, processes=2)
    assert not shared.shares_sides(small, processes=2)
    assert not shared.shares_sides(large, processes=1)
    assert not AdmmSettings().shares_sides(large, processes=2)


def test_problems_that_were_not_used_for_the_longest_time_are_given_up() -> None:
    settings, cpu = AdmmSettings(steps=1), torch.device("cpu")
    size = Problem((8, 6), 4, settings, cpu).size
    assert size == 4 * (3 * 4 * (8 + 6) + (8 + 6) + 2 * 8 * 6)
    problems = KeptProblems(2.5 * size)

    def used(seed_rank: int) -> Problem:
        return problems.problem(Problem, (8, 6), rank=seed_rank, settings=settings, device=cpu)

    first, second = used(4), used(3)
    assert used(4) is first
    assert used(2) is not second
    assert [problem.left.primal.shape[0] for problem in problems.all()] == [4, 2]
    assert used(9999) in problems.all()  # one too large for the limit is alone
    assert len(problems.all()) == 1
