# SPDX-License-Identifier: Apache-2.0
"""Metrics of curvature factors: the power, the trace, and what stands for the eigenvectors that are not kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanoquant_edge.compression.factorize.metric import _orthonormal, kept_directions, metric
from tests.compression.factorize.test_lb_admm_curved import correlated, whole


def test_the_power_keeps_the_trace() -> None:
    found = metric(correlated(40, 3))
    exponent_one = metric(correlated(40, 3), 1.0)
    assert float(found.values.sum()) == pytest.approx(40, rel=1e-5)
    torch.testing.assert_close(exponent_one.values.sqrt() / exponent_one.values.sqrt().mean(), found.values)
    back = (exponent_one.vectors * exponent_one.values) @ exponent_one.vectors.T
    torch.testing.assert_close(back.diagonal(), torch.ones(40), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept", [1, 30, 90, 199, 200])
def test_the_largest_eigenvalues_are_kept_and_the_rest_is_the_mean_of_the_others(kept: int) -> None:
    factor = correlated(200, 3)
    everything, found = metric(factor, kept=200), metric(factor, kept=kept)
    values = everything.values
    assert found.vectors.shape == (200, kept)
    assert float(found.values.sum() + (200 - kept) * found.rest) == pytest.approx(200, rel=1e-4)
    torch.testing.assert_close(found.values, values[-kept:], rtol=0.06, atol=0)
    if kept < 200:
        assert float(found.rest) == pytest.approx(float(values[:-kept].mean()), rel=0.03)
    # Of all matrices of this form the best is the one with the same leading part and the mean of the others.
    missed = (whole(found) - whole(everything)).norm()
    others = values[:-kept]
    best = (others - others.mean()).norm() if len(others) else torch.zeros(())
    assert float(missed) < 1.05 * float(best) + 0.02


def test_applied_is_the_product_with_the_matrix() -> None:
    found, x = metric(correlated(60, 1), kept=7), torch.randn(60, 5)
    torch.testing.assert_close(found.applied(x), whole(found) @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [20, 7])
def test_a_basis_is_orthonormal_also_where_columns_depend_on_each_other(rank: int) -> None:
    x = torch.randn(300, rank) @ torch.randn(rank, 20) * torch.logspace(0, 3, 20)
    basis = _orthonormal(x)
    torch.testing.assert_close(basis.T @ basis, torch.eye(20), rtol=0, atol=1e-4)
    torch.testing.assert_close(basis @ (basis.T @ x), x, rtol=1e-3, atol=1e-2 * float(x.abs().max()))


def test_the_same_factor_has_the_same_metric() -> None:
    one, other = (metric(correlated(200, 3), kept=20) for _ in range(2))
    assert torch.equal(one.vectors, other.vectors)


def test_small_sides_are_kept_whole() -> None:
    assert [kept_directions(size) for size in (1, 576, 2048, 4096, 14336)] == [1, 576, 2048, 1024, 1792]


def test_eigenvectors_that_do_not_converge_are_found_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, original = correlated(24, 3), torch.linalg.eigh
    wanted = metric(factor).values

    def single(matrix: Tensor) -> object:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", single)
    found = metric(factor)
    assert found.vectors.dtype == torch.float32
    torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)
