# SPDX-License-Identifier: Apache-2.0
"""One side of LB-ADMM: a factor, its projection, dual variable and ridge regression (docs/METHOD.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from .inverse import solve_by_products
from .settings import AdmmSettings

__all__ = ["CONDITION", "EPSILON", "NEWTON_STEPS", "FactorState", "rank_one_magnitudes"]

#: Norms are divided by no less than this.
EPSILON = 1e-12
#: The Gram matrices' condition numbers on real layers are below 50 from the first iteration on, below 10 from the
#: middle; the bound on the largest eigenvalue that the solver takes is a few times too large, more so at a high rank.
CONDITION, NEWTON_STEPS = 100.0, 6
_HIGH_RANK, _HIGH_RANK_CONDITION, _HIGH_RANK_NEWTON_STEPS = 1024, 200.0, 7


def rank_one_magnitudes(x: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Leading singular pair of |x| by power iteration, with the singular value folded into the left vector.

    Args:
        x: (a, b).
        start: (b,) random start vector.
        steps: power iterations.

    Returns:
        left (a,) and right (b,), non-negative, so that |x| is close to their outer product.
    """
    magnitude = x.abs()
    # |x| has no negative entry, so by Perron-Frobenius neither has its leading pair; a positive start only helps.
    right = start.abs()
    right = right / right.norm().clamp_min(EPSILON)
    left = magnitude @ right
    for _ in range(steps):
        right = magnitude.T @ left
        right = right / right.norm().clamp_min(EPSILON)
        left = magnitude @ right
    return left, right


class FactorState:
    """One factor and its ADMM state, stored with the rank as rows: (r, k) for a k-channel side.

    Both factors are kept this way round so that every product and solve reads rows; the method writes A as (m, r).
    All state keeps its address.

    Args:
        rank: r.
        channels: k.
        device: where the state lies.
        settings: of the iteration.
    """

    def __init__(self, rank: int, channels: int, device: torch.device, settings: AdmmSettings) -> None:
        self.by_products = settings.uses_products(device)
        self.primal, self.signed, self.dual = (torch.empty(rank, channels, device=device) for _ in range(3))
        self.right = torch.empty(channels, device=device)
        self.svid_steps = settings.svid_steps

    def start(self, generator: torch.Generator) -> None:
        """Gaussian start."""
        # On the generator's device: a large layer's start takes a tenth of a second of one processor core.
        for state in (self.primal, self.right):
            state.copy_(torch.randn(state.shape, generator=generator, device=generator.device))
        # The leading pair moves little between iterations, so each power iteration starts where the last one ended.
        self._project(self.primal)
        torch.sub(self.primal, self.signed, out=self.dual)

    def _project(self, x: Tensor) -> None:
        """SVID: keep all signs, force the magnitudes to rank one."""
        left, right = rank_one_magnitudes(x, self.right, self.svid_steps)
        self.right.copy_(right)
        torch.mul(left[:, None], right[None, :], out=self.signed).copysign_(x)

    def unit_rows(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The projection with each rank component scaled to unit norm, the other factor's design matrix."""
        norms = self.signed.norm(dim=1, keepdim=True).clamp_min(EPSILON)
        return torch.div(self.signed, norms, out=torch.empty_like(self.signed, dtype=dtype))

    def solve(
        self, design: Tensor, target: Tensor, *, rho: Tensor, ridge: float, careful: bool
    ) -> tuple[Tensor, Tensor]:
        """Ridge regression of the target on the design, pulled toward the projection with weight rho.

        Args:
            design: (r, j) unit rows of the other factor, in the compute type.
            target: (j, k) in the compute type.
            rho: (1,).
            ridge: added to the diagonal of the Gram matrix.
            careful: by Cholesky, and look whether the Gram matrix could be factorized, which waits for a GPU.

        Returns:
            The solution, and a positive number where it is none.
        """
        right_side = (design @ target).float().add_((self.signed - self.dual).mul_(rho))
        gram = (design @ design.T).float()
        if self.by_products and not careful:
            gram.diagonal().add_(rho + ridge)
            high = len(gram) > _HIGH_RANK
            limits = (_HIGH_RANK_CONDITION, _HIGH_RANK_NEWTON_STEPS) if high else (CONDITION, NEWTON_STEPS)
            solution = solve_by_products(gram, right_side, *limits)
            return solution, (~torch.isfinite(solution.sum())).int()
        matrix = 0.5 * (gram + gram.T)
        matrix.diagonal().add_(rho + ridge)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if careful and int(info):  # rounding made the Gram matrix indefinite
            return torch.linalg.solve(matrix, right_side), torch.zeros_like(info)
        return torch.cholesky_solve(right_side, factor), info.abs()

    def update(self, primal: Tensor) -> None:
        """Projection and dual step for a new primal value."""
        self.primal.copy_(primal)
        self.dual += primal
        self._project(self.dual)
        self.dual -= self.signed
