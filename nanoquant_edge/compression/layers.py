# SPDX-License-Identifier: Apache-2.0
"""The three forms a linear layer takes while it is compressed: latent, frozen, and scale-only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .admm import Factors, sign

__all__ = ["LatentLinear", "ScaledCore", "SignFactors", "frozen_linear", "module_at", "replace_module"]


class _StraightThroughSign(torch.autograd.Function):
    """sign(x) forward (0 counts as +1), identity backward without a clipping window (method section 8.4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class SignFactors:
    """Hardened factors of one layer, on the CPU; one byte a sign.

    Attributes:
        u: int8 (m, r) of -1 and +1.
        v: int8 (r, n).
        scale_out: float32 (m,).
        scale_in: float32 (n,).
        bias: float32 (m,) or None.
    """

    def __init__(self, u: Tensor, v: Tensor, scale_out: Tensor, scale_in: Tensor, bias: Tensor | None) -> None:
        self.u = sign(u.detach()).to(torch.int8).cpu()
        self.v = sign(v.detach()).to(torch.int8).cpu()
        self.scale_out = scale_out.detach().float().cpu().clone()
        self.scale_in = scale_in.detach().float().cpu().clone()
        self.bias = None if bias is None else bias.detach().float().cpu().clone()

    def core(self, device: torch.device) -> Tensor:
        """U V as float32 (m, n); its entries are integers of magnitude at most r, so it is exact below r = 2^24."""
        return self.u.to(device, torch.float32) @ self.v.to(device, torch.float32)


class LatentLinear(nn.Module):
    """y = s_out (sign(U) (sign(V) (s_in x))) + bias, trained through the straight-through sign.

    Args:
        factors: from LB-ADMM.
        bias: the layer's own bias or None; trained together with the factors.
    """

    def __init__(self, factors: Factors, bias: Tensor | None) -> None:
        super().__init__()
        self.u_latent = nn.Parameter(factors.u_latent.clone())
        self.v_latent = nn.Parameter(factors.v_latent.clone())
        self.scale_out = nn.Parameter(factors.scale_out.clone())
        self.scale_in = nn.Parameter(factors.scale_in.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        inner = nn.functional.linear(x * self.scale_in, _StraightThroughSign.apply(self.v_latent))
        y = nn.functional.linear(inner, _StraightThroughSign.apply(self.u_latent)) * self.scale_out
        return y if self.bias is None else y + self.bias

    def harden(self) -> SignFactors:
        """Signs and scales as they are now."""
        return SignFactors(self.u_latent, self.v_latent, self.scale_out, self.scale_in, self.bias)


def frozen_linear(factors: SignFactors, device: torch.device) -> nn.Linear:
    """An ordinary linear layer with the dense weight of hardened factors: cheapest to run while others are tuned."""
    weight = factors.core(device)
    weight *= factors.scale_out.to(device)[:, None]
    weight *= factors.scale_in.to(device)[None, :]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=factors.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if factors.bias is not None:
        layer.bias = nn.Parameter(factors.bias.to(device), requires_grad=False)
    return layer


class ScaledCore(nn.Module):
    """y = s_out (C (s_in x)) + bias with the fixed integer core C = U V; only the scales can be trained.

    Takes the memory of the dense layer and its time, not that of two factors.
    """

    core: Tensor

    def __init__(self, factors: SignFactors, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("core", factors.core(device).to(dtype), persistent=False)
        self.scale_out = nn.Parameter(factors.scale_out.to(device))
        self.scale_in = nn.Parameter(factors.scale_in.to(device))
        self.bias = None if factors.bias is None else nn.Parameter(factors.bias.to(device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        y = nn.functional.linear((x * self.scale_in).to(self.core.dtype), self.core) * self.scale_out
        return y if self.bias is None else y + self.bias


def module_at(root: nn.Module, path: str) -> Any:
    """The submodule at a dotted path; which class it has, the caller knows."""
    return root.get_submodule(path)


def replace_module(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, new)
