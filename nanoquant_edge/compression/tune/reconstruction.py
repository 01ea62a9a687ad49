# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of one decoder block: tune, factorize, tune again, layer by layer (docs/METHOD.md, section 8)."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..calibrate.curvature import input_factors
from ..calibrate.importances import Importance, input_moments
from ..execution.parallel import team
from ..factorize.factors import Factors
from ..factorize.lb_admm import factorize
from ..factorize.lb_admm_curved import Curvature, factorize_curved
from ..factorize.metric import Metric
from ..run import Run
from .layers import SignFactors
from .optimizer import Outcome
from .workbench import Workbench

__all__ = ["BlockResult", "reconstruct_block"]

#: Steps of a layer, in order.
_STEPS = ("TuneFP", "LB-ADMM", "TuneLatentSTE")


@dataclass
class BlockResult:
    """What came out of one block.

    Attributes:
        block: the block with hardened layers, for the compressed stream; valid until the workbench is used again.
        factors: linear name inside the block -> hardened factors.
        errors: linear name -> relative weighted error of the factorization.
        losses: linear name -> (TuneFP outcome, TuneLatentSTE outcome).
        seconds: step -> time over all layers.
        together: outcome of the tuning of all layers at once, where the recipe has it.
        plain: layers whose factorization under curvature was not finite, so that the diagonals served.
    """

    block: nn.Module
    factors: dict[str, SignFactors] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    losses: dict[str, tuple[Outcome, Outcome]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STEPS, 0.0))
    together: Outcome = field(default_factory=lambda: Outcome(math.nan, math.nan))
    plain: list[str] = field(default_factory=list)


def reconstruct_block(
    workbench: Workbench, ranks: Mapping[str, int], importances: Mapping[str, Importance], run: Run
) -> BlockResult:
    """Compress the linear layers of the block that a workbench has loaded, in order.

    Holds the dense block and a copy of it in three forms, optimizer states, and one batch of activations.

    Args:
        workbench: with a block and its streams.
        ranks: linear name -> rank.
        importances: linear name -> importances.
        run: its seed is set anew before every stage, as in the official code.
    """
    recipe, inputs = run.recipe, workbench.inputs
    curved: dict[str, Metric] = {}
    if recipe.curvature:
        curved = input_factors(workbench.open, workbench.forward, inputs, workbench.at_once)
    elif recipe.refresh_inputs:
        moments = input_moments(workbench.open, workbench.forward, inputs, workbench.at_once)
        importances = {
            name: replace(value, inputs=moments[name].shrunk(len(inputs), value.inputs.numel(), recipe.gamma))
            for name, value in importances.items()
        }
    result = BlockResult(workbench.block)
    for index, name in enumerate(workbench.linears):
        run.progress(index / len(workbench.linears), name)
        workbench.use_open(index)
        workbench.remember_attention(index)
        times = [time.monotonic()]
        tuned_open = workbench.tune_open(index, run.seed)
        times.append(time.monotonic())
        factors, curvature_failed = _factorized(
            workbench, name, ranks[name], importances[name], input_factor=curved.get(name), seed=run.seed
        )
        result.plain += [name] if curvature_failed else []
        team().take_first([factors.u_latent, factors.v_latent, factors.scale_out, factors.scale_in])
        times.append(time.monotonic())
        workbench.use_latent(index, factors)
        tuned_latent = workbench.tune_latent(name, ranks[name], run.seed)
        result.factors[name] = workbench.harden(name, ranks[name])
        result.errors[name] = factors.error
        result.losses[name] = (tuned_open, tuned_latent)
        times.append(time.monotonic())
        for step, (start, end) in zip(_STEPS, itertools.pairwise(times), strict=True):
            result.seconds[step] += end - start  # each step ends by reading a figure from the device
    if recipe.joint_epochs:
        start = time.monotonic()
        result.together = workbench.tune_together(ranks, run.seed)
        result.factors = workbench.harden_together(ranks)
        result.seconds["TuneLatentSTE"] += time.monotonic() - start
    workbench.attention.release()
    return result


def _factorized(
    workbench: Workbench, name: str, rank: int, importance: Importance, *, input_factor: Metric | None, seed: int
) -> tuple[Factors, bool]:
    """LB-ADMM of an open layer, under its curvature where there is some; and whether that failed."""
    weight, device = workbench.open[name].weight, workbench.call.device
    settings = replace(workbench.recipe.admm(workbench.call.dtype), share_sides=True)
    if input_factor is not None and importance.curvature is not None:
        curvature = Curvature(
            inputs=input_factor,
            outputs=importance.curvature.to(device),
            input_importance=float(importance.inputs.mean()),
            output_importance=float(importance.outputs.mean()),
        )
        factors = factorize_curved(
            weight, rank, curvature=curvature, settings=settings, seed=seed, problems=workbench.problems
        )
        if math.isfinite(factors.error):
            return factors, False
    plain = factorize(
        weight,
        rank,
        inputs=importance.inputs.to(device),
        outputs=importance.outputs.to(device),
        settings=settings,
        seed=seed,
        problems=workbench.problems,
    )
    return plain, input_factor is not None
