# SPDX-License-Identifier: Apache-2.0
"""What LB-ADMM is given and what it gives: a preconditioned weight, and latent sign matrices with two scale vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .factor_state import EPSILON, FactorState

__all__ = ["Factors", "PreconditionedWeight", "balanced_factors", "sign"]


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

    def transposed(self) -> Factors:
        """The factors of the transposed weight."""
        u, v = self.v_latent.T.contiguous(), self.u_latent.T.contiguous()
        return Factors(u, v, self.scale_in, self.scale_out, self.error)


class PreconditionedWeight:
    """A weight scaled by the roots of its channels' importances: diag(output_roots) W diag(input_roots), float32.

    Args:
        weight: W, (m, n), any floating type.
        input_roots: (n,), positive.
        output_roots: (m,), positive.
    """

    def __init__(self, weight: Tensor, input_roots: Tensor, output_roots: Tensor) -> None:
        self.input_roots, self.output_roots = input_roots, output_roots
        self.target = output_roots[:, None] * weight.detach().float() * input_roots[None, :]

    def residual(self, factors: Factors) -> Tensor:
        """What the factors miss of the target, (m, n)."""
        return self.target - self.output_roots[:, None] * factors.dense() * self.input_roots[None, :]


def sign(x: Tensor) -> Tensor:
    """Signs as -1 and +1 in x's type; zero counts as +1."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def balanced_factors(weight: PreconditionedWeight, left: FactorState, right: FactorState, size: float) -> Factors:
    """Magnitude balancing (paper Eq. 7) and the two scale vectors (docs/METHOD.md, section 5.3).

    Args:
        weight: what was factorized.
        left, right: the two sides after the last iteration.
        size: the target was divided by it.
    """
    input_roots, output_roots = weight.input_roots, weight.output_roots
    a_hat = size * left.signed.T / output_roots[:, None]
    b_hat = size * right.signed / input_roots[None, :]
    eta = (b_hat.norm() / a_hat.norm().clamp_min(EPSILON)).sqrt()
    scale_out = (eta * left.unit_rows().T / output_roots[:, None]).abs().mean(1)
    scale_in = (b_hat / eta).abs().mean(0)
    u_latent = (size * eta) * (left.primal + left.dual).T / output_roots[:, None]
    v_latent = (size / eta) * (right.primal + right.dual) / input_roots[None, :]
    if not bool(weight.target.any()):  # the signs of an all-zero layer mean nothing; its scales say so
        scale_out = torch.zeros_like(scale_out)
    factors = Factors(u_latent.contiguous(), v_latent, scale_out, scale_in, 0.0)
    factors.error = float(weight.residual(factors).norm() / weight.target.norm().clamp_min(EPSILON))
    return factors
