# SPDX-License-Identifier: Apache-2.0
"""A hardened layer as two factors whose signs may still flip, and with a scale for each rank, for the last tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..factorize.factors import Factors
from ..factorize.signs import unpacked_signs
from .layers import LatentLinear, SignFactors

__all__ = ["FactorLinear"]


class FactorLinear(LatentLinear):
    """y = s_out (U (s_mid (V (s_in x)))) + bias from hardened factors, every latent being its sign.

    A latent has to be pushed by a whole 1 before its sign flips. An optimizer that steps by its learning rate at most,
    as Adam does, needs hundreds of steps in one direction for that: a budget of flips for those signs that all text
    wants to flip (the start of PV-tuning's latents in DBF's code, docs/METHOD.md, section 9).

    Args:
        factors: hardened.
        device: where to compute.
        mid: give the layer a scale for each rank, which begins as 1 where the factors have none.
    """

    def __init__(self, factors: SignFactors, device: torch.device, mid: bool = False) -> None:
        rank = len(factors.v_words)
        u, v = self._signs(factors, device)
        scales = factors.scale_out.to(device), factors.scale_in.to(device)
        super().__init__(Factors(u, v, *scales, 0.0), None if factors.bias is None else factors.bias.to(device))
        self.requires_grad_(False)
        if mid or factors.scale_mid is not None:
            start = torch.ones(rank) if factors.scale_mid is None else factors.scale_mid
            self.scale_mid = nn.Parameter(start.to(device), requires_grad=False)

    @staticmethod
    def _signs(factors: SignFactors, device: torch.device) -> tuple[Tensor, Tensor]:
        rank = len(factors.v_words)
        return (
            unpacked_signs(factors.u_words.to(device), rank, torch.float32),
            unpacked_signs(factors.v_words.to(device), factors.in_features, torch.float32),
        )

    @torch.no_grad()
    def take_signs(self, factors: SignFactors) -> None:
        """The signs of other factors of the same shape."""
        for latent, signs in zip(self.latents, self._signs(factors, self.u_latent.device), strict=True):
            latent.copy_(signs)

    @torch.no_grad()
    def flipped(self, factors: SignFactors) -> int:
        """How many signs are not those of some factors."""
        pairs = zip(self.latents, self._signs(factors, self.u_latent.device), strict=True)
        return sum(int(((latent < 0) != (signs < 0)).sum()) for latent, signs in pairs)
