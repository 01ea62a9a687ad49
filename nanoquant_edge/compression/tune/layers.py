# SPDX-License-Identifier: Apache-2.0
"""The three forms a linear layer takes while it is compressed: latent, frozen, and scale-only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..factorize.factors import Factors
from ..factorize.signs import packed_signs, sign_core, unpacked_signs

__all__ = [
    "LatentLinear",
    "ScaledCore",
    "SignFactors",
    "empty_linear",
    "load_frozen",
    "module_at",
    "replace_module",
]


class _StraightThroughSign(torch.autograd.Function):
    """sign(x) in a compute type, 0 as +1; backward is the identity everywhere (docs/METHOD.md, section 7)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        # Two launches, and no scalar travels from the host, which a CUDA graph could not repeat.
        negative = torch.lt(x, 0, out=torch.empty(x.shape, dtype=dtype, device=x.device))
        return torch.rsub(negative, 1, alpha=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _ScaleColumns(torch.autograd.Function):
    """x scaled per channel, multiplied in float32 and stored in x's or the asked type in the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, scale)
        return torch.mul(x, scale, out=torch.empty(x.shape, dtype=dtype, device=x.device))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        gradient = gradients[0]
        for_x = for_scale = None
        if ctx.needs_input_grad[0]:
            for_x = torch.mul(gradient, scale, out=torch.empty_like(x))
        if ctx.needs_input_grad[1]:
            product = torch.mul(gradient, x, out=torch.empty(x.shape, dtype=scale.dtype, device=x.device))
            for_scale = product.flatten(0, -2).sum(0)
        return for_x, for_scale, None


def _compute_type(x: Tensor) -> torch.dtype:
    """The type of matrix products here: autocast's inside of it, else x's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class SignFactors:
    """Hardened factors of one layer, on the CPU; one bit a sign.

    Attributes:
        u_words: int32 (m, ceil(r / 32)), the signs of U.
        v_words: int32 (r, ceil(n / 32)), the signs of V.
        in_features: n.
        scale_out: float32 (m,).
        scale_in: float32 (n,).
        bias: float32 (m,) or None.
        scale_mid: float32 (r,) or None, a scale for each rank, which only the tuning from end to end makes.
    """

    scale_mid: Tensor | None = None

    def __init__(self, u: Tensor, v: Tensor, scale_out: Tensor, scale_in: Tensor, bias: Tensor | None) -> None:
        self.u_words, self.v_words, self.in_features = packed_signs(u), packed_signs(v), v.shape[1]
        self.scale_out = scale_out.detach().float().cpu().clone()
        self.scale_in = scale_in.detach().float().cpu().clone()
        self.bias = None if bias is None else bias.detach().float().cpu().clone()

    @classmethod
    def from_words(
        cls, u_words: Tensor, v_words: Tensor, scale_out: Tensor, scale_in: Tensor, bias: Tensor | None
    ) -> SignFactors:
        """Factors whose signs are packed already."""
        factors = cls.__new__(cls)
        factors.u_words, factors.v_words, factors.in_features = u_words, v_words, len(scale_in)
        factors.scale_out, factors.scale_in, factors.bias = scale_out, scale_in, bias
        return factors

    def core(self, device: torch.device) -> Tensor:
        """U V as float32 (m, n), or U diag(scale_mid) V."""
        if self.scale_mid is None:
            return sign_core(self.u_words.to(device), self.v_words.to(device), self.in_features)
        u = unpacked_signs(self.u_words.to(device), len(self.v_words), torch.float32)
        return (u * self.scale_mid.to(device)) @ unpacked_signs(self.v_words.to(device), self.in_features, u.dtype)

    def dense(self, device: torch.device) -> Tensor:
        """The dense weight, float32 (m, n)."""
        weight = self.core(device)
        weight *= self.scale_out.to(device)[:, None]
        weight *= self.scale_in.to(device)[None, :]
        return weight


class LatentLinear(nn.Module):
    """y = s_out (sign(U) (s_mid (sign(V) (s_in x)))) + bias, trained through the straight-through sign.

    There is no s_mid before the tuning from end to end.

    Args:
        factors: from LB-ADMM.
        bias: the layer's own bias or None; trained together with the factors.
    """

    def __init__(self, factors: Factors, bias: Tensor | None) -> None:
        super().__init__()
        self.scale_mid: nn.Parameter | None = None
        self.u_latent = nn.Parameter(factors.u_latent.clone())
        self.v_latent = nn.Parameter(factors.v_latent.clone())
        self.scale_out = nn.Parameter(factors.scale_out.clone())
        self.scale_in = nn.Parameter(factors.scale_in.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    @property
    def latents(self) -> list[Tensor]:
        """What becomes signs."""
        return [self.u_latent, self.v_latent]

    @property
    def scales(self) -> list[Tensor]:
        """What stays numbers: the scale vectors, and the bias where there is one."""
        return [part for part in (self.scale_out, self.scale_in, self.scale_mid, self.bias) if part is not None]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        dtype = _compute_type(x)
        inner = nn.functional.linear(
            _ScaleColumns.apply(x, self.scale_in, dtype), _StraightThroughSign.apply(self.v_latent, dtype)
        )
        if self.scale_mid is not None:
            inner = _ScaleColumns.apply(inner, self.scale_mid, dtype)
        y = nn.functional.linear(inner, _StraightThroughSign.apply(self.u_latent, dtype))
        y = _ScaleColumns.apply(y, self.scale_out, dtype)
        return y if self.bias is None else y + self.bias.to(dtype)

    @torch.no_grad()
    def load(self, factors: Factors, bias: Tensor | None) -> None:
        """Copy other factors of the same shapes into the parameters."""
        for name in ("u_latent", "v_latent", "scale_out", "scale_in"):
            getattr(self, name).copy_(getattr(factors, name))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def harden(self) -> SignFactors:
        """Signs and scales as they are now."""
        factors = SignFactors(self.u_latent, self.v_latent, self.scale_out, self.scale_in, self.bias)
        factors.scale_mid = None if self.scale_mid is None else self.scale_mid.detach().float().cpu().clone()
        return factors


def empty_linear(like: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """An untrained linear of the same shape and device in another type, with values still to come."""
    empty = nn.Linear(
        like.in_features, like.out_features, like.bias is not None, device=like.weight.device, dtype=dtype
    )
    return empty.requires_grad_(False)


def load_frozen(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy values into a frozen linear."""
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)


class ScaledCore(nn.Module):
    """y = s_out (C (s_in x)) + bias with the fixed integer core C = U V; only the scales can be trained.

    Takes the memory of the dense layer and its time, not that of two factors. With `packed` it holds a bit a sign and
    makes the core anew in every pass, r multiply-adds an entry: for models whose cores do not fit all at once.
    """

    core: Tensor | None
    u_words: Tensor
    v_words: Tensor

    def __init__(self, factors: SignFactors, device: torch.device, dtype: torch.dtype, packed: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("core", None if packed else factors.core(device).to(dtype), persistent=False)
        if packed:
            self.register_buffer("u_words", factors.u_words.to(device), persistent=False)
            self.register_buffer("v_words", factors.v_words.to(device), persistent=False)
        self.scale_out = nn.Parameter(factors.scale_out.to(device))
        self.scale_in = nn.Parameter(factors.scale_in.to(device))
        self.bias = None if factors.bias is None else nn.Parameter(factors.bias.to(device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        dtype, core = self.dtype, self.core
        if core is None:
            core = sign_core(self.u_words, self.v_words, len(self.scale_in), dtype)
        y = nn.functional.linear(_ScaleColumns.apply(x, self.scale_in, dtype), core)
        y = _ScaleColumns.apply(y, self.scale_out, dtype)
        return y if self.bias is None else y + self.bias.to(dtype)


def module_at(root: nn.Module, path: str) -> Any:
    """The submodule at a dotted path; which class it has, the caller knows."""
    return root.get_submodule(path)


def replace_module(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, new)
