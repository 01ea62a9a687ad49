# SPDX-License-Identifier: Apache-2.0
"""A copy of a decoder block with everything that its tuning needs (docs/METHOD.md, sections 6 and 7).

The target is the dense block's output on the dense model's own stream; the input is the compressed model's stream.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..execution.block_call import BlockCall, same_arguments
from ..factorize.factors import Factors
from ..factorize.problem import KeptProblems
from ..recipe import Recipe
from .attention_memory import ATTENTION, AttentionMemory
from .block_replacements import fuse_norms, weighted_squares
from .layers import LatentLinear, SignFactors, empty_linear, load_frozen, module_at, replace_module
from .optimizer import Outcome, ParameterGroup, Tuner

__all__ = ["Workbench"]

#: Up to this many weights a block is bound by launches: its stages are kept, captured once and run for all blocks.
_CAPTURE_UP_TO = 100_000_000
#: Bytes of latent layers with their optimizer states, and of factorizations, that are kept for later blocks. Ranks
#: differ from block to block, so that each block could have all its own.
_KEPT_BYTES = 2 << 30
#: What a latent layer takes, in float32 numbers for each of its values: itself, its gradient, two moments, and the copy
#: to go back to.
_COPIES = 5


class Workbench:
    """A copy of a block with everything that its tuning needs, for one block or for all blocks of the same make.

    Each linear exists in three forms that take turns in the copy: open (float32, trained by TuneFP), latent (trained
    by TuneLatentSTE) and frozen (the compute type). The tensors stay where they are from block to block, so that a
    captured tuning step serves all of them.

    Args:
        dense: a block of the dense model, on the device.
        linears: layers to compress, in processing order.
        call: how to run the block.
        recipe: schedules and learning rates.
        at_once: windows that go through the block together where nothing is trained.
        keep: keep stages and streams for further blocks; needed for, and implied by, CUDA graphs.
    """

    def __init__(
        self,
        dense: nn.Module,
        linears: tuple[str, ...],
        call: BlockCall,
        recipe: Recipe,
        *,
        at_once: int = 1,
        keep: bool | None = None,
    ) -> None:
        self.linears, self.call, self.recipe, self.at_once = linears, call, recipe, at_once
        self.block = copy.deepcopy(dense).requires_grad_(False)
        self.norms = fuse_norms(self.block, call.dtype)
        self.open: dict[str, nn.Linear] = {name: module_at(self.block, name) for name in linears}
        self.frozen = {name: empty_linear(layer, call.dtype) for name, layer in self.open.items()}
        self.latent: dict[tuple[str, int], LatentLinear] = {}
        weights = sum(layer.weight.numel() for layer in self.open.values())
        self.keep = (call.device.type == "cuda" and weights <= _CAPTURE_UP_TO) if keep is None else keep
        self.attention = AttentionMemory(self.block, self.keep)
        self.problems = KeptProblems(_KEPT_BYTES) if self.keep else None
        self.tuners: dict[tuple[str, int], Tuner] = {}
        self._shapes = {name: value.shape for name, value in dense.state_dict().items()}
        self._kind = getattr(dense, "attention_type", None)
        self.inputs = self.targets = self.loss_weights = torch.empty(0)

    @torch.no_grad()
    def load(self, dense: nn.Module, *, inputs: Tensor, targets: Tensor, loss_weights: Tensor) -> None:
        """Take over another block and its streams.

        Args:
            dense: a block of the dense model, on the device; not changed.
            inputs: (windows, length, hidden) compressed stream.
            targets: (windows, length, hidden) dense block's output on the dense stream.
            loss_weights: (hidden,) channel weights of the block loss.
        """
        self.attention.release()
        for name, layer in self.open.items():
            replace_module(self.block, name, layer)
        tensors = self.block.state_dict()
        for name, value in dense.state_dict().items():
            if name.rpartition(".")[0] not in self.norms:
                tensors[name].copy_(value)
        for name, norm in self.norms.items():
            norm.load(module_at(dense, name))
        self.inputs = self._at_old_address(self.inputs, inputs)
        self.targets = self._at_old_address(self.targets, targets)
        self.loss_weights = self._at_old_address(self.loss_weights, loss_weights.to(self.call.device))

    def close(self) -> None:
        """Give back the memory of all stages now; graphs, steps and what they read hold each other."""
        for tuner in self.tuners.values():
            tuner.close()
        self.tuners.clear()
        if self.problems is not None:
            self.problems.close()

    def _at_old_address(self, old: Tensor, new: Tensor) -> Tensor:
        """The new value at the old address where stages are kept."""
        if self.keep and old.shape == new.shape:
            return old.copy_(new)
        return new.clone() if self.keep else new

    def forward(self, stream: Tensor) -> Tensor:
        """The block's output for a part of a stream, (windows, length, hidden), as its layers are now."""
        return self.call(self.block, stream.to(self.call.device))

    def _loss(self, chosen: Tensor) -> Tensor:
        x, y = self.inputs[chosen].to(self.call.device), self.targets[chosen].to(self.call.device)
        self.attention.choose(chosen)
        loss = weighted_squares(self.call(self.block, x), y, self.loss_weights)
        loss.backward()
        return loss.detach()

    def serves(self, dense: nn.Module, call: BlockCall) -> bool:
        """Whether another block is of this make: called with the same values, with tensors of the same shapes."""
        shapes = {name: value.shape for name, value in dense.state_dict().items()}
        return (
            self.keep
            and shapes == self._shapes
            and getattr(dense, "attention_type", None) == self._kind
            and same_arguments(call.arguments, self.call.arguments)
        )

    def _tune(
        self, key: tuple[str, int], groups: list[ParameterGroup], *, batch: int, epochs: int, seed: int
    ) -> Outcome:
        if not epochs:
            return Outcome(math.nan, math.nan)
        tuner = self.tuners.get(key) or Tuner(groups, batch, self._loss, capture=self.keep)
        if self.keep:
            self.tuners[key] = tuner
        outcome = tuner.run(len(self.inputs), epochs, seed)
        if not self.keep:
            tuner.close()
        return outcome

    def tune_open(self, index: int, seed: int) -> Outcome:
        """TuneFP of all layers from `index` on."""
        recipe = self.recipe
        weights = [self.open[name].weight for name in self.linears[index:]]
        group = ParameterGroup(weights, recipe.fp_lr, recipe.relative_lr)
        key = (self.linears[index], 0)
        return self._tune(key, [group], batch=recipe.fp_batch, epochs=recipe.fp_epochs, seed=seed)

    def tune_latent(self, name: str, rank: int, seed: int) -> Outcome:
        """TuneLatentSTE of one layer."""
        recipe, latent = self.recipe, self.latent[name, rank]
        groups = [
            ParameterGroup(latent.latents, recipe.ste_lr, recipe.relative_lr),
            ParameterGroup(latent.scales, recipe.ste_scale_lr, recipe.relative_lr),
        ]
        return self._tune((name, rank), groups, batch=recipe.ste_batch, epochs=recipe.ste_epochs, seed=seed)

    def tune_together(self, ranks: Mapping[str, int], seed: int) -> Outcome:
        """TuneLatentSTE of all layers at once, from the latents that each was left with; nothing is kept of it."""
        recipe = self.recipe
        self.attention.release()
        layers = [self.latent[name, ranks[name]] for name in self.linears]
        for name, layer in zip(self.linears, layers, strict=True):
            replace_module(self.block, name, layer)
        tuner = Tuner(
            [
                ParameterGroup([x for layer in layers for x in layer.latents], recipe.joint_lr, recipe.relative_lr),
                ParameterGroup([x for layer in layers for x in layer.scales], recipe.ste_scale_lr, recipe.relative_lr),
            ],
            recipe.ste_batch,
            self._loss,
            capture=self.keep,
        )
        with contextlib.closing(tuner):
            return tuner.run(len(self.inputs), recipe.joint_epochs, seed)

    def use_open(self, index: int) -> None:
        """Layers before `index` frozen, the others open."""
        for position, name in enumerate(self.linears):
            replace_module(self.block, name, self.open[name] if position >= index else self.frozen[name])

    @torch.no_grad()
    def use_latent(self, index: int, factors: Factors) -> None:
        """Layer `index` latent, with these factors; all others frozen."""
        current = self.linears[index]
        for name in self.linears[index + 1 :]:
            load_frozen(self.frozen[name], self.open[name].weight, self.open[name].bias)
            replace_module(self.block, name, self.frozen[name])
        layer, key = self.open[current], (current, factors.u_latent.shape[1])
        latent = self.latent.pop(key, None)
        if latent is None:
            latent = LatentLinear(factors, layer.bias)
        else:
            latent.load(factors, layer.bias)
        self.latent[key] = latent
        replace_module(self.block, current, latent)
        self._forget()

    def _forget(self) -> None:
        """Give up the latent layers that were not used for the longest time, where all take too much."""
        sizes = {key: _COPIES * sum(p.nbytes for p in layer.parameters()) for key, layer in self.latent.items()}
        # Where all layers of a block are tuned together in the end, they are needed until then.
        needed = len(self.linears) if self.recipe.joint_epochs else 1
        for key in list(sizes)[:-needed]:
            if sum(sizes.values()) <= _KEPT_BYTES:
                break
            del sizes[key], self.latent[key]
            tuner = self.tuners.pop(key, None)
            if tuner is not None:
                tuner.close()

    @torch.no_grad()
    def harden(self, name: str, rank: int) -> SignFactors:
        """Signs and scales of a latent layer, which is frozen from here on."""
        factors = self.latent[name, rank].harden()
        self.freeze(name, factors)
        if not (self.keep or self.recipe.joint_epochs):
            del self.latent[name, rank]
        return factors

    def harden_together(self, ranks: Mapping[str, int]) -> dict[str, SignFactors]:
        """Signs and scales of all layers after they were tuned together."""
        factors = {name: self.harden(name, ranks[name]) for name in self.linears}
        if not self.keep:
            self.latent.clear()
        return factors

    @torch.no_grad()
    def freeze(self, name: str, factors: SignFactors) -> None:
        """Put hardened factors in place of a layer."""
        load_frozen(self.frozen[name], factors.dense(self.call.device), factors.bias)
        replace_module(self.block, name, self.frozen[name])

    def remember_attention(self, index: int) -> None:
        """Once no layer from `index` on lies in the attention, its output is computed for the last time and kept."""
        inside = [name.startswith(f"{ATTENTION}.") for name in self.linears]
        if any(inside) and not any(inside[index:]):
            self.attention.fill(self.forward, self.inputs, self.at_once)
