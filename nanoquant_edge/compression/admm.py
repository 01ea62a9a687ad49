# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM: the importance-weighted factorization of a weight into two sign matrices (method sections 8.2 and 8.3).

Memory: about 8 matrices of the factors' size and 3 of the weight's, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NqEdgeError

__all__ = ["Factors", "factorize", "rank_one_magnitudes", "sign"]

_EPS = 1e-12


@dataclass
class Factors:
    """Latent sign matrices and scales of one layer, float32.

    Attributes:
        u_latent: (m, r); its signs are U.
        v_latent: (r, n); its signs are V.
        scale_out: (m,).
        scale_in: (n,).
        error: ||W~ - W^~||_F / ||W~||_F of the importance-weighted weight, with the two scales as exported.
    """

    u_latent: Tensor
    v_latent: Tensor
    scale_out: Tensor
    scale_in: Tensor
    error: float

    def dense(self) -> Tensor:
        """diag(scale_out) sign(U) sign(V) diag(scale_in), (m, n)."""
        core = sign(self.u_latent) @ sign(self.v_latent)
        return self.scale_out[:, None] * core * self.scale_in[None, :]


def sign(x: Tensor) -> Tensor:
    """Signs as -1 and +1 in x's type; zero counts as +1."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


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
    right = right / right.norm().clamp_min(_EPS)
    left = magnitude @ right
    for _ in range(steps):
        right = magnitude.T @ left
        right = right / right.norm().clamp_min(_EPS)
        left = magnitude @ right
    return left, right


class _Factor:
    """One factor and its ADMM state, stored with the rank as rows: (r, k) for a k-channel side.

    Both factors are kept this way round so that every product and solve reads rows; the method writes A as (m, r).
    """

    def __init__(self, rank: int, channels: int, generator: torch.Generator, device: torch.device, svid_steps: int):
        self.primal = torch.randn(rank, channels, generator=generator).to(device)
        # The leading pair moves little between iterations, so each power iteration starts where the last one ended.
        self.right = torch.randn(channels, generator=generator).to(device)
        self.svid_steps = svid_steps
        self.signed = self._project(self.primal)
        self.dual = self.primal - self.signed

    def _project(self, x: Tensor) -> Tensor:
        """SVID: keep all signs, force the magnitudes to rank one."""
        left, self.right = rank_one_magnitudes(x, self.right, self.svid_steps)
        return torch.outer(left, self.right).copysign_(x)

    def unit_rows(self) -> Tensor:
        """The projection with each rank component scaled to unit norm, the other factor's design matrix."""
        return self.signed / self.signed.norm(dim=1, keepdim=True).clamp_min(_EPS)

    def solve(self, design: Tensor, target: Tensor, rho: float, ridge: float) -> Tensor:
        """Ridge regression of the target on the design, pulled toward the projection with weight rho.

        Args:
            design: (r, j) unit rows of the other factor, in the compute type.
            target: (j, k) in the compute type.
        """
        right_side = (design @ target).float().add_(self.signed - self.dual, alpha=rho)
        return _solve((design @ design.T).float(), rho + ridge, right_side)

    def update(self, primal: Tensor) -> None:
        """Projection and dual step for a new primal value."""
        self.primal = primal
        self.dual += primal
        self.signed = self._project(self.dual)
        self.dual -= self.signed

    def rescale(self, size: float) -> None:
        """Multiply the whole state."""
        for part in (self.primal, self.signed, self.dual):
            part.mul_(size)


def _solve(gram: Tensor, shift: float, right_side: Tensor) -> Tensor:
    """(gram + shift I)^-1 right_side by Cholesky, or by a general solve where rounding made the Gram indefinite."""
    matrix = 0.5 * (gram + gram.T)
    matrix.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0:
        return torch.cholesky_solve(right_side, factor)
    return torch.linalg.solve(matrix, right_side)


def factorize(
    weight: Tensor,
    in_importance: Tensor,
    out_importance: Tensor,
    rank: int,
    *,
    steps: int = 400,
    schedule: str = "linear",
    ridge: float = 0.03,
    svid_steps: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """Factorize a weight matrix into signs and two scale vectors.

    Args:
        weight: (m, n), any floating type.
        in_importance: (n,) second moments of the inputs, non-negative.
        out_importance: (m,) second moments of the output gradients, non-negative.
        rank: inner dimension r >= 1; may exceed min(m, n).
        steps: ADMM iterations K.
        schedule: penalty rho = (k/K) or (k/K)^3: "linear" or "cubic".
        ridge: lambda, absolute on a Gram with unit diagonal.
        svid_steps: power iterations of each projection.
        seed: of the Gaussian start.
        dtype: type in which Grams and right-hand sides are multiplied; solves are always float32. bfloat16 costs
            nothing measurable (method section 13.4) and is several times faster where there are matrix units.

    Raises:
        NqEdgeError: NQ-NUMERIC when the weight or an importance is not finite.
    """
    for name, value in (("weight", weight), ("importances", in_importance), ("importances", out_importance)):
        if not bool(torch.isfinite(value).all()):
            raise NqEdgeError("NQ-NUMERIC", f"the {name} of a layer to factorize hold NaN or infinity.")
    if weight.shape[0] < weight.shape[1]:
        turned = factorize(
            weight.T,
            out_importance,
            in_importance,
            rank,
            steps=steps,
            schedule=schedule,
            ridge=ridge,
            svid_steps=svid_steps,
            seed=seed,
            dtype=dtype,
        )
        return Factors(
            turned.v_latent.T.contiguous(),
            turned.u_latent.T.contiguous(),
            turned.scale_in,
            turned.scale_out,
            turned.error,
        )
    w = weight.detach().float()
    d_in = _root(in_importance)
    d_out = _root(out_importance)
    target = d_out[:, None] * w * d_in[None, :]
    # The start has entries of about 1; a target of another size takes many more steps to forget it. Up to the start
    # the iteration commutes with scaling both factors, so it runs on unit size and the size is put back at the end.
    size = float(target.square().mean().sqrt()) or 1.0
    target /= size
    m, n = w.shape
    generator = torch.Generator().manual_seed(seed)
    left = _Factor(rank, m, generator, w.device, svid_steps)
    right = _Factor(rank, n, generator, w.device, svid_steps)
    targets = (target.T.to(dtype).contiguous(), target.to(dtype))
    for step in range(steps):
        rho = step / steps if schedule == "linear" else (step / steps) ** 3
        # Both sides solve against the other's previous iterate (Jacobi), as in the official code.
        left_design, right_design = left.unit_rows(), right.unit_rows()
        new_left = left.solve(right_design.to(dtype), targets[0], rho, ridge)
        new_right = right.solve(left_design.to(dtype), targets[1], rho, ridge)
        left.update(new_left)
        right.update(new_right)
    for factor in (left, right):
        factor.rescale(size)
    return _export(target.mul_(size), d_in, d_out, left, right)


def _root(importance: Tensor) -> Tensor:
    """Square root of the importances; a layer that never saw a gradient counts every channel equally (section 13.5)."""
    value = importance.detach().float()
    if not bool((value > 0).any()):
        return torch.ones_like(value)
    return value.clamp_min(0).sqrt().clamp_min(_EPS)


def _export(target: Tensor, d_in: Tensor, d_out: Tensor, left: _Factor, right: _Factor) -> Factors:
    """Magnitude balancing (paper Eq. 7) and the two scale vectors (method section 8.3)."""
    a_hat = left.signed.T / d_out[:, None]
    b_hat = right.signed / d_in[None, :]
    eta = (b_hat.norm() / a_hat.norm().clamp_min(_EPS)).sqrt()
    scale_out = (eta * left.unit_rows().T / d_out[:, None]).abs().mean(1)
    scale_in = (b_hat / eta).abs().mean(0)
    u_latent = eta * (left.primal + left.dual).T / d_out[:, None]
    v_latent = (right.primal + right.dual) / d_in[None, :] / eta
    if not bool(target.any()):  # the signs of an all-zero layer mean nothing; its scales say so
        scale_out = torch.zeros_like(scale_out)
    factors = Factors(u_latent.contiguous(), v_latent, scale_out, scale_in, 0.0)
    residual = target - d_out[:, None] * factors.dense() * d_in[None, :]
    factors.error = float(residual.norm() / target.norm().clamp_min(_EPS))
    return factors
