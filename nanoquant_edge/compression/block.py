# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of one decoder block: tune, factorize, tune again, layer by layer (method sections 5 and 8).

The target is the dense block's output on the dense model's own stream; the input is the compressed model's stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .admm import factorize
from .importance import Importance
from .layers import LatentLinear, SignFactors, frozen_linear, module_at, replace_module
from .optimize import Outcome, ParameterGroup, compute_in, train
from .recipe import Recipe

__all__ = ["BlockCall", "BlockResult", "reconstruct_block"]


@dataclass
class BlockCall:
    """How to call a decoder block: keyword arguments recorded from the dense model, and the compute type."""

    arguments: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Block output (batch, length, hidden), float32."""
        with compute_in(self.dtype, self.device):
            output = block(hidden, **self.arguments)
        return (output[0] if isinstance(output, tuple) else output).float()

    @torch.no_grad()
    def over(self, block: nn.Module, stream: Tensor, batch: int) -> Tensor:
        """The block's output for a whole stream (windows, length, hidden) that lies on the CPU or the device."""
        parts = [self(block, part.to(self.device)).to(stream.device) for part in stream.split(batch)]
        return torch.cat(parts)


@dataclass
class BlockResult:
    """What came out of one block.

    Attributes:
        factors: linear name inside the block -> hardened factors.
        block: the block with hardened layers, for the compressed stream.
        errors: linear name -> relative weighted error of the factorization.
        losses: linear name -> (TuneFP outcome, TuneLatentSTE outcome).
    """

    factors: dict[str, SignFactors]
    block: nn.Module
    errors: dict[str, float]
    losses: dict[str, tuple[Outcome, Outcome]]


def reconstruct_block(
    dense: nn.Module,
    linears: tuple[str, ...],
    ranks: dict[str, int],
    importances: dict[str, Importance],
    weights: Tensor,
    inputs: Tensor,
    targets: Tensor,
    call: BlockCall,
    recipe: Recipe,
    seed: int,
    report: Callable[[float, str], None] = lambda _fraction, _text: None,
) -> BlockResult:
    """Compress the linear layers of one block, in order.

    Holds the dense block and a copy of it, optimizer states of one stage, and one batch of activations.

    Args:
        dense: the block of the dense model, on the device; it is not changed.
        linears: layers to compress, in processing order.
        ranks: linear name -> rank.
        importances: linear name -> importances.
        weights: (hidden,) channel weights of the block loss.
        inputs: (windows, length, hidden) compressed stream.
        targets: (windows, length, hidden) dense block's output on the dense stream.
        call: how to run the block.
        recipe: schedules and learning rates.
        seed: reset before every stage, as in the official code.
        report: called with the fraction done and what is being done.
    """
    device = call.device
    block = copy.deepcopy(dense).requires_grad_(False)
    weights = weights.to(device)

    def block_loss(chosen: Tensor) -> Tensor:
        x, y = inputs[chosen].to(device), targets[chosen].to(device)
        difference = call(block, x) - y
        # A sum over tokens and channels, as Adam's eps is sized for that; a mean over the batch (section 8.1).
        loss = (difference.square() * weights).sum() / len(chosen)
        loss.backward()
        return loss.detach()

    result = BlockResult({}, block, {}, {})
    for index, name in enumerate(linears):
        report(index / len(linears), name)
        still_dense = [module_at(block, other).weight for other in linears[index:]]
        fp = train(
            [ParameterGroup(still_dense, recipe.fp_lr, recipe.relative_lr)],
            len(inputs),
            recipe.fp_batch,
            recipe.fp_epochs,
            seed,
            block_loss,
        )
        layer = module_at(block, name)
        factors = factorize(
            layer.weight,
            importances[name].inputs.to(device),
            importances[name].outputs.to(device),
            ranks[name],
            steps=recipe.admm_steps,
            schedule=recipe.admm_schedule,
            ridge=recipe.admm_ridge,
            svid_steps=recipe.svid_steps,
            seed=seed,
            dtype=call.dtype,
        )
        latent = LatentLinear(factors, layer.bias)
        replace_module(block, name, latent)
        scales = [latent.scale_out, latent.scale_in] + ([] if latent.bias is None else [latent.bias])
        ste = train(
            [
                ParameterGroup([latent.u_latent, latent.v_latent], recipe.ste_lr, recipe.relative_lr),
                ParameterGroup(scales, recipe.ste_scale_lr, recipe.relative_lr),
            ],
            len(inputs),
            recipe.ste_batch,
            recipe.ste_epochs,
            seed,
            block_loss,
        )
        result.factors[name] = latent.harden()
        result.errors[name] = factors.error
        result.losses[name] = (fp, ste)
        replace_module(block, name, frozen_linear(result.factors[name], device))
    return result
