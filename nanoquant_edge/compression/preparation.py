# SPDX-License-Identifier: Apache-2.0
"""What is decided before the first block: what there is memory for, calibration windows, importances, ranks."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..models.source import SourceModel
from ..system.memory import return_freed_memory
from .calibrate.curvature import no_room
from .calibrate.divergence import SplicedModel
from .calibrate.importances import Importance, collect_importances
from .calibrate.ranks import allocate_ranks
from .calibrate.sensitivities import measured_errors, rank_shares
from .calibrate.sources import CalibrationText
from .calibrate.streamed_gradients import gradient_pass_by_blocks
from .calibrate.windows import calibration_windows
from .execution.parallel import team
from .kept_results import keep_sensitivities, keep_start, kept_sensitivities, kept_start
from .recipe import Recipe
from .run import Run

__all__ = [
    "affordable_recipe",
    "calibrated",
    "chosen_ranks",
    "recipe_in_memory",
    "recipe_with_text",
    "recipe_within_positions",
]


def affordable_recipe(
    recipe: Recipe,
    linears: dict[str, nn.Linear],
    *,
    in_a_block: int,
    device: torch.device,
    free_memory: int | None = None,
) -> tuple[Recipe, list[str]]:
    """The recipe without what there is no memory for, and what was left out, with the reason.

    Args:
        recipe: as asked for.
        linears: name -> layer to compress, block by block.
        in_a_block: layers of a block.
        device: where to run.
        free_memory: bytes of this host's memory that may be counted on; None asks the system.
    """
    if not recipe.curvature:
        return recipe, []
    reason = no_room(linears, in_a_block, device, free_memory)
    lacking = torch.tensor([len(reason)], device=device)
    team().take_first([lacking])  # all processes decide as the first one does
    if not int(lacking):
        return recipe, []
    return replace(recipe, curvature=False), [f"curvature, for want of memory ({reason or 'in the first process'})"]


def recipe_in_memory(recipe: Recipe, *, streamed: bool) -> tuple[Recipe, list[str]]:
    """The recipe without what needs the whole model in memory where weights are streamed, and what was left out."""
    if not (streamed and recipe.rank_sensitivity and recipe.rank_divergence):
        return recipe, []
    return replace(recipe, rank_divergence=False), [
        "ranks by divergence (weights that are streamed are never all there)"
    ]


def recipe_within_positions(recipe: Recipe, positions: int) -> tuple[Recipe, list[str]]:
    """The recipe with windows that a model of so many positions can read, and what was left out."""
    if recipe.window_length <= positions:
        return recipe, []
    asked = recipe.window_length
    left_out = f"calibration windows of more than {positions} tokens, the model's longest text ({asked} were asked for)"
    return replace(recipe, window_length=positions), [left_out]


def recipe_with_text(recipe: Recipe, text: CalibrationText | None, *, streamed: bool) -> tuple[Recipe, list[str]]:
    """The recipe without tuning from end to end where there is no text for it, or where weights are streamed."""
    if not recipe.end_to_end_tokens or (text is not None and not streamed):
        return recipe, []
    reason = "weights that are streamed are never all in memory" if streamed else "it needs --calibration"
    return replace(recipe, end_to_end_tokens=0), [f"tuning from end to end ({reason})"]


def calibrated(
    source: SourceModel, linears: dict[str, nn.Linear], text: CalibrationText | None, run: Run
) -> tuple[Tensor, dict[str, Importance]]:
    """Windows int64 (windows, length) and the importances of all layers, from the run's state where it has them.

    Args:
        source: the dense model, on the run's device.
        linears: name -> layer to compress.
        text: to take windows from; None lets the model write them.
        run: with its recipe's windows and shrinkage.

    Raises:
        NqEdgeError: NQ-CALIBRATION for too short a text, NQ-MODEL when the tokenizer and the vocabulary disagree,
            NQ-NUMERIC for a loss that is not finite.
    """
    kept = kept_start(run.state, linears)
    if kept is not None:
        run.progress(0.25, run.state.describe())
        return kept
    run.progress(0.0, "drawing calibration windows")
    windows = calibration_windows(source, text, run.part(0.0, 0.25))
    run.progress(0.25, "importances")
    importances = collect_importances(
        source.model,
        linears,
        windows,
        run.part(0.25, 1.0, "importances"),
        passes=functools.partial(gradient_pass_by_blocks, source) if source.streamed else None,
    )
    keep_start(run.state, windows, importances)
    if source.streamed:
        return_freed_memory()
    return windows, importances


def chosen_ranks(
    source: SourceModel,
    linears: dict[str, nn.Linear],
    importances: dict[str, Importance],
    *,
    windows: Tensor,
    bpw: float,
    run: Run,
) -> dict[str, int]:
    """Ranks of all layers by name; measured sensitivities are kept in, and taken from, the run's state.

    Args:
        source: the dense model, on the run's device.
        linears: name -> layer to compress.
        importances: name -> importances.
        windows: int64 (windows, length) of calibration text.
        bpw: target rate.
        run: its recipe says how.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.
    """
    per_block = len(source.family.linears)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in linears.items()}
    blocks = {name: number // per_block for number, name in enumerate(linears)}
    shares = None
    if run.recipe.rank_sensitivity:
        even = allocate_ranks(shapes, blocks, bpw=bpw)
        errors = kept_sensitivities(run.state, len(even))
        if errors is None:
            with run.clock.stage("sensitivities"):
                spliced = SplicedModel(source, windows, run) if run.recipe.rank_divergence else None
                errors = measured_errors(
                    source.layers(list(linears)),
                    importances,
                    even,
                    run,
                    divergence=None if spliced is None else spliced.divergence,
                )
            keep_sensitivities(run.state, errors)
        shares, _ = rank_shares(errors, even, shapes)
    recipe = run.recipe
    return allocate_ranks(shapes, blocks, bpw=bpw, depth=recipe.rank_depth, shares=shares, fill=recipe.rank_fill)
