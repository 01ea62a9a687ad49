# SPDX-License-Identifier: Apache-2.0
"""The inverse by products against float64, its step count, and a matrix that rounding made indefinite."""

from __future__ import annotations

import pytest
import torch

from nanoquant_edge.compression.factorize.inverse import inverse


def gram(rank: int, width: int, ridge: float) -> torch.Tensor:
    design = torch.randn(rank, width, generator=torch.Generator().manual_seed(rank))
    design /= design.norm(dim=1, keepdim=True)
    matrix = design @ design.T
    matrix.diagonal().add_(ridge)
    return matrix


@pytest.mark.parametrize(("rank", "width"), [(1, 8), (64, 96), (96, 64), (160, 576)])
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_against_float64(rank: int, width: int, ridge: float) -> None:
    matrix = gram(rank, width, ridge)
    exact = torch.linalg.inv(matrix.double())
    error = torch.linalg.matrix_norm(inverse(matrix, 100.0, 8).double() - exact, 2)
    assert error < 2e-5 * torch.linalg.matrix_norm(exact, 2)


def newton_steps(condition: float, wanted: float) -> int:
    """Steps after which I - M X is below `wanted`: each step scales the spectrum around 1 and squares the norm."""
    error, steps = (condition - 1) / (condition + 1), 0
    while error > wanted:
        error, steps = error**2 / (2 - error**2), steps + 1
    return steps


def test_newton_steps_are_enough() -> None:
    matrix = gram(160, 576, 0.1)
    condition = float(torch.linalg.cond(matrix))
    # The bound on the largest eigenvalue is not sharp, and shifts the condition number that matters.
    for wanted in (1e-1, 1e-3):
        found = inverse(matrix, 4 * condition, newton_steps(4 * condition, wanted))
        assert torch.linalg.matrix_norm(matrix @ found - torch.eye(160), 2) < wanted


def test_an_eigenvalue_below_the_bound_stays_small() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, -1e-4, 0.0]))
    found = inverse(matrix, 100.0, 6)
    assert found[0, 0] == pytest.approx(1.0, rel=1e-3)
    assert found[1, 1] == pytest.approx(0.5, rel=1e-3)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) < 1000  # 1 / 1e-4 and 1 / 0 otherwise
