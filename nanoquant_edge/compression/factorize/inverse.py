# SPDX-License-Identifier: Apache-2.0
"""Solving with a well-conditioned positive definite matrix by matrix products alone.

A Cholesky factorization is a chain of short dependent steps: at the ranks of a small model a GPU takes longer for it,
and for the two triangular solves, than for a dozen matrix products of the same size. At the ranks of a large one the
triangular solves are the long part, since they don't run on tensor cores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..execution.precision import tensor_cores

__all__ = ["inverse", "solve_by_products"]


def _scaled(error: float) -> tuple[float, float]:
    """The scaling of a Newton step from I - M X of spectral norm `error`, and the norm that is left.

    The eigenvalues of M X lie in [1 - error, 1 + error], those of M X (2 I - M X) therefore in [1 - error^2, 1], which
    the scaling moves around 1.
    """
    return 2 / (2 - error * error), error * error / (2 - error * error)


def inverse(matrix: Tensor, condition: float, steps: int) -> Tensor:
    """Newton's iteration X <- X (2 I - M X) with each step scaled for the spectrum that the last one left.

    Nothing waits for the device and all shapes are fixed, so it can be part of a CUDA graph. Eigenvalues below
    largest / condition get less than their inverse, so a matrix that rounding made indefinite does no harm.

    Args:
        matrix: (r, r) float32, symmetric.
        condition: about its condition number, 2 or more; the smaller, the fewer steps are needed.
        steps: 1 or more; each about squares the norm of I - M X.

    Returns:
        The inverse, (r, r); on a GPU with the errors of TF32 products.
    """
    with tensor_cores():
        # The fourth root of the sum of the eigenvalues' fourth powers is at least the largest of them.
        largest = (matrix @ matrix).norm().sqrt()
        unit = matrix * (2 / (largest + largest / condition))
        error = (condition - 1) / (condition + 1)
        best, error = _scaled(error)
        estimate = -best * unit
        estimate.diagonal().add_(2 * best)
        for _ in range(steps - 1):
            best, error = _scaled(error)
            estimate = torch.addmm(estimate, estimate, unit @ estimate, beta=2 * best, alpha=-best)
        return estimate.mul_(2 / (largest + largest / condition))


def solve_by_products(matrix: Tensor, right_side: Tensor, condition: float, steps: int) -> Tensor:
    """`inverse` of a matrix (r, r) times a right side (r, k); on a GPU in TF32 as well."""
    estimate = inverse(matrix, condition, steps)
    with tensor_cores():
        return estimate @ right_side
