# SPDX-License-Identifier: Apache-2.0
"""Replacements inside the copy of a block that is tuned: the same function in fewer kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .layers import replace_module

__all__ = ["FusedNorm", "fuse_norms", "weighted_squares"]


class FusedNorm(nn.Module):
    """An RMS norm in one kernel; its output has the compute type, so that several consumers need no casts of their own.

    Args:
        norm: the module it stands for, which must be x / rms(x) times a gain.
        eps: added to the mean square.
        dtype: type of the output.
    """

    gain: Tensor

    def __init__(self, norm: nn.Module, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.dtype = eps, dtype
        self.register_buffer("gain", _gain(norm, eps))

    def load(self, norm: nn.Module) -> None:
        """Take over the gain of another norm of the same kind."""
        self.gain.copy_(_gain(norm, self.eps))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., channels)."""
        return nn.functional.rms_norm(x.float(), self.gain.shape, self.gain, self.eps).to(self.dtype)


@torch.no_grad()
def _gain(norm: Any, eps: float) -> Tensor:
    """What a norm multiplies each channel with, whatever its formula (Gemma stores the gain less one)."""
    ones = torch.ones(norm.weight.shape, device=norm.weight.device)
    result: Tensor = norm(ones).float() * math.sqrt(1 + eps)
    return result


@torch.no_grad()
def fuse_norms(block: nn.Module, dtype: torch.dtype) -> dict[str, FusedNorm]:
    """Replace the RMS norms of a block; one that does not compute what the fused form does is left alone.

    Returns:
        Module path -> the norm put there.
    """
    fused_norms = {}
    for name, norm in list(block.named_modules()):
        weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if not (type(norm).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(eps, float)):
            continue
        fused = FusedNorm(norm, eps, torch.float32)
        x = torch.linspace(-3, 2, 4 * weight.numel(), device=weight.device).view(4, -1)
        if not torch.allclose(fused(x), norm(x).float(), rtol=1e-4, atol=1e-4):
            continue
        fused.dtype = dtype
        fused_norms[name] = fused
        replace_module(block, name, fused)
    return fused_norms


class _WeightedSquares(torch.autograd.Function):
    """sum of weight_c (a - b)^2 times a factor, in four kernels there and back."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, weights: Tensor, factor: float) -> Tensor:
        difference = outputs - targets
        weighted = difference * weights
        ctx.save_for_backward(weighted)
        ctx.factor = factor
        return torch.dot(difference.flatten(), weighted.flatten()) * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weighted,) = ctx.saved_tensors
        return weighted * (gradients[0] * (2 * ctx.factor)), None, None, None


def weighted_squares(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Block loss: weighted squares, summed over tokens and channels, a mean over windows (docs/METHOD.md, section 6).

    Args:
        outputs, targets: float32 (batch, length, channels).
        weights: float32 (channels,).
    """
    loss: Tensor = _WeightedSquares.apply(outputs, targets, weights, 1 / len(outputs))
    return loss
