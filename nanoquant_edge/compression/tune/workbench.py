# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of one decoder block: tune, factorize, tune again, layer by layer (docs/METHOD.md, sections 5 to 8).

The target is the dense block's output on the dense model's own stream; the input is the compressed model's stream.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.curvature import input_factors
from ..calibrate.importances import Importance, input_moments
from ..execution.block_call import BlockCall, same_arguments
from ..execution.parallel import team
from ..factorize.lb_admm import Factors, factorize
from ..factorize.lb_admm_curved import factorize_curved
from ..options import Recipe
from .block_replacements import RememberedModule, fuse_norms, weighted_squares
from .layers import LatentLinear, SignFactors, empty_linear, load_frozen, module_at, replace_module
from .optimizer import Outcome, ParameterGroup, Tuner

__all__ = ["BlockResult", "Workbench", "reconstruct_block"]

#: Up to this many weights a block is bound by launches: its stages are kept, captured once and run for all blocks.
_CAPTURE_UP_TO = 100_000_000
_ATTENTION = "self_attn"


@dataclass
class BlockResult:
    """What came out of one block.

    Attributes:
        factors: linear name inside the block -> hardened factors.
        block: the block with hardened layers, for the compressed stream; valid until the workbench is used again.
        errors: linear name -> relative weighted error of the factorization.
        losses: linear name -> (TuneFP outcome, TuneLatentSTE outcome).
        seconds: stage -> time over all layers.
        plain: layers whose factorization under curvature was not finite, so that the diagonals served.
    """

    factors: dict[str, SignFactors]
    block: nn.Module
    errors: dict[str, float]
    losses: dict[str, tuple[Outcome, Outcome]]
    seconds: dict[str, float] = field(default_factory=lambda: {"TuneFP": 0.0, "LB-ADMM": 0.0, "TuneLatentSTE": 0.0})
    plain: list[str] = field(default_factory=list)


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
        keep: bool | None = None,
        at_once: int = 1,
    ) -> None:
        self.linears, self.call, self.recipe, self.at_once = linears, call, recipe, at_once
        self.block = copy.deepcopy(dense).requires_grad_(False)
        self.norms = fuse_norms(self.block, call.dtype)
        self.open: dict[str, nn.Linear] = {name: module_at(self.block, name) for name in linears}
        self.frozen = {name: empty_linear(layer, call.dtype) for name, layer in self.open.items()}
        self.latent: dict[tuple[str, int], LatentLinear] = {}
        weights = sum(layer.weight.numel() for layer in self.open.values())
        self.keep = (call.device.type == "cuda" and weights <= _CAPTURE_UP_TO) if keep is None else keep
        self.problems: dict[Any, Any] | None = {} if self.keep else None
        self._tuners: dict[tuple[str, int], Tuner] = {}
        self._shapes = {name: value.shape for name, value in dense.state_dict().items()}
        self._kind = getattr(dense, "attention_type", None)
        self._attention = getattr(self.block, _ATTENTION, None)
        self._memory: RememberedModule | None = None
        self._recalled = False
        self.inputs = self.targets = self.weights = torch.empty(0)

    @torch.no_grad()
    def load(self, dense: nn.Module, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Put another block and its streams on the bench; `dense` is not changed."""
        self.forget_attention()
        for name, layer in self.open.items():
            replace_module(self.block, name, layer)
        own = self.block.state_dict()
        for name, value in dense.state_dict().items():
            if name.rpartition(".")[0] not in self.norms:
                own[name].copy_(value)
        for name, norm in self.norms.items():
            norm.load(module_at(dense, name))
        self.inputs = self._placed(self.inputs, inputs)
        self.targets = self._placed(self.targets, targets)
        self.weights = self._placed(self.weights, weights.to(self.call.device))

    def close(self) -> None:
        """Give back the memory of all stages now; graphs, steps and what they read hold each other."""
        for stage in (*self._tuners.values(), *(self.problems or {}).values()):
            stage.close()
        self._tuners.clear()
        (self.problems or {}).clear()

    def _placed(self, old: Tensor, new: Tensor) -> Tensor:
        """The new value at the old address where stages are kept."""
        if self.keep and old.shape == new.shape:
            return old.copy_(new)
        return new.clone() if self.keep else new

    def _loss(self, chosen: Tensor) -> Tensor:
        x, y = self.inputs[chosen].to(self.call.device), self.targets[chosen].to(self.call.device)
        if self._memory is not None and self._recalled:
            self._memory.chosen = chosen
        loss = weighted_squares(self.call(self.block, x), y, self.weights)
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

    def _tune(self, key: tuple[str, int], groups: list[ParameterGroup], batch: int, epochs: int, seed: int) -> Outcome:
        if not epochs:
            return Outcome(math.nan, math.nan)
        tuner = self._tuners.get(key) or Tuner(groups, batch, self._loss, capture=self.keep)
        if self.keep:
            self._tuners[key] = tuner
        outcome = tuner.run(len(self.inputs), epochs, seed)
        if not self.keep:
            tuner.close()
        return outcome

    def tune_open(self, index: int, seed: int) -> Outcome:
        """TuneFP of all layers from `index` on."""
        recipe = self.recipe
        weights = [self.open[name].weight for name in self.linears[index:]]
        group = ParameterGroup(weights, recipe.fp_lr, recipe.relative_lr)
        return self._tune((self.linears[index], 0), [group], recipe.fp_batch, recipe.fp_epochs, seed)

    def tune_latent(self, name: str, rank: int, seed: int) -> Outcome:
        """TuneLatentSTE of one layer."""
        recipe, latent = self.recipe, self.latent[name, rank]
        scales = [latent.scale_out, latent.scale_in] + ([] if latent.bias is None else [latent.bias])
        groups = [
            ParameterGroup([latent.u_latent, latent.v_latent], recipe.ste_lr, recipe.relative_lr),
            ParameterGroup(scales, recipe.ste_scale_lr, recipe.relative_lr),
        ]
        return self._tune((name, rank), groups, recipe.ste_batch, recipe.ste_epochs, seed)

    def use_open(self, index: int) -> None:
        """Layers before `index` frozen, the others open."""
        for place, name in enumerate(self.linears):
            replace_module(self.block, name, self.open[name] if place >= index else self.frozen[name])

    @torch.no_grad()
    def use_latent(self, index: int, factors: Any) -> None:
        """Layer `index` latent, with these factors; all others frozen."""
        current = self.linears[index]
        for name in self.linears[index + 1 :]:
            load_frozen(self.frozen[name], self.open[name].weight, self.open[name].bias)
            replace_module(self.block, name, self.frozen[name])
        layer, key = self.open[current], (current, factors.u_latent.shape[1])
        if key in self.latent:
            self.latent[key].load(factors, layer.bias)
        else:
            self.latent[key] = LatentLinear(factors, layer.bias)
        replace_module(self.block, current, self.latent[key])

    @torch.no_grad()
    def harden(self, name: str, rank: int) -> SignFactors:
        """Signs and scales of a latent layer, which is frozen from here on."""
        factors = self.latent[name, rank].harden()
        self.freeze(name, factors)
        if not self.keep:
            del self.latent[name, rank]
        return factors

    @torch.no_grad()
    def freeze(self, name: str, factors: SignFactors) -> None:
        """Put hardened factors in a layer's place."""
        load_frozen(self.frozen[name], factors.dense(self.call.device), factors.bias)
        replace_module(self.block, name, self.frozen[name])

    @torch.no_grad()
    def remember_attention(self, index: int) -> None:
        """Once no layer from `index` on lies in the attention, its output is computed for the last time and kept."""
        prefix = f"{_ATTENTION}."
        inside = [name.startswith(prefix) for name in self.linears]
        if self._recalled or self._attention is None or not any(inside) or any(inside[index:]):
            return
        seen: list[Any] = []
        handle = self._attention.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
        parts = []
        try:
            for part in self.inputs.split(self.at_once):
                self.call(self.block, part.to(self.call.device))
                output = seen.pop()
                parts.append((output[0] if isinstance(output, tuple) else output).to(self.inputs.device))
        finally:
            handle.remove()
        values = torch.cat(parts)
        if self._memory is None or not self.keep:
            rest = tuple(None for _ in output[1:]) if isinstance(output, tuple) else None
            self._memory = RememberedModule(values, rest)
        else:
            self._memory.values.copy_(values)
        setattr(self.block, _ATTENTION, self._memory)
        self._recalled = True

    def forget_attention(self) -> None:
        """Let the attention compute again."""
        if self._recalled:
            setattr(self.block, _ATTENTION, self._attention)
        self._recalled = False


def _factorized(
    bench: Workbench, name: str, rank: int, importance: Importance, inputs: Tensor | None, seed: int
) -> tuple[Factors, bool]:
    """LB-ADMM of an open layer, under its curvature where there is some; and whether that failed."""
    weight, device = bench.open[name].weight, bench.call.device
    settings = replace(bench.recipe.admm(bench.call.dtype), together=True)
    if inputs is not None and importance.curvature is not None:
        sizes = float(importance.inputs.mean()), float(importance.outputs.mean())
        outputs = importance.curvature.to(device)
        factors = factorize_curved(weight, inputs, outputs, sizes, rank, settings, seed, bench.problems)
        if math.isfinite(factors.error):
            return factors, False
    moments = importance.inputs.to(device), importance.outputs.to(device)
    return factorize(weight, *moments, rank, settings, seed, bench.problems), inputs is not None


def reconstruct_block(
    dense: nn.Module | None,
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
    bench: Workbench | None = None,
) -> BlockResult:
    """Compress the linear layers of one block, in order.

    Holds the dense block and a copy of it in three forms, optimizer states, and one batch of activations.

    Args:
        dense: the block of the dense model, on the device; it is not changed. None where `bench` is loaded already.
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
        bench: from an earlier block of the same make, to be used again; None makes one.
    """
    device = call.device
    if dense is not None:
        bench = Workbench(dense, linears, call, recipe) if bench is None else bench
        bench.load(dense, inputs, targets, weights)
    assert bench is not None
    curved: dict[str, Tensor] = {}

    def run(part: Tensor) -> Tensor:
        return call(bench.block, part.to(device))

    if recipe.curvature:
        curved = input_factors(bench.open, run, inputs, bench.at_once)
    elif recipe.refresh_inputs:
        moments = input_moments(bench.open, run, inputs, bench.at_once)
        importances = {
            name: replace(value, inputs=moments[name].shrunk(len(inputs), value.inputs.numel(), recipe.gamma))
            for name, value in importances.items()
        }
    result = BlockResult({}, bench.block, {}, {})
    for index, name in enumerate(linears):
        report(index / len(linears), name)
        bench.use_open(index)
        bench.remember_attention(index)
        clock = [time.monotonic()]
        fp = bench.tune_open(index, seed)
        clock.append(time.monotonic())
        factors, plain = _factorized(bench, name, ranks[name], importances[name], curved.get(name), seed)
        result.plain += [name] if plain else []
        team().take_first([factors.u_latent, factors.v_latent, factors.scale_out, factors.scale_in])
        clock.append(time.monotonic())
        bench.use_latent(index, factors)
        ste = bench.tune_latent(name, ranks[name], seed)
        result.factors[name] = bench.harden(name, ranks[name])
        result.errors[name] = factors.error
        result.losses[name] = (fp, ste)
        clock.append(time.monotonic())
        for stage, (start, end) in zip(result.seconds, itertools.pairwise(clock), strict=True):
            result.seconds[stage] += end - start  # each stage ends by reading a figure from the device
    bench.forget_attention()
    return result
