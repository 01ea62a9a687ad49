# SPDX-License-Identifier: Apache-2.0
"""What is decided before the first block: calibration windows, importances, ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import NqEdgeError
from ..models.source import SourceModel
from ..system.memory import return_freed_memory
from .calibrate.importances import Importance, collect_importances
from .calibrate.ranks import allocate_ranks
from .calibrate.sensitivities import measured_errors, rank_shares
from .calibrate.streamed_gradients import gradient_pass_by_blocks
from .calibrate.text import sampled_windows, text_windows
from .execution.parallel import team
from .options import Recipe
from .resume import RunState

__all__ = ["calibrated", "chosen_ranks"]

Report = Callable[[float, str], None]


def calibrated(
    source: SourceModel,
    linears: dict[str, nn.Linear],
    recipe: Recipe,
    text: str | None,
    seed: int,
    state: RunState,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
) -> tuple[Tensor, dict[str, Importance]]:
    """Windows int64 (windows, length) and the importances of all layers, from the state where it has them.

    Args:
        source: the dense model, placed on `device`.
        linears: name -> layer to compress.
        recipe: windows and shrinkage.
        text: to draw windows from; None lets the model write them.
        seed: of the windows.
        state: where both are kept.
        device: where to run.
        dtype: compute type.
        report: called with (fraction done, what is being done).

    Raises:
        NqEdgeError: NQ-CALIBRATION for too short a text, NQ-MODEL when the tokenizer and the vocabulary disagree,
            NQ-NUMERIC for a loss that is not finite.
    """
    stored = state.start(linears)
    if stored is not None:
        report(0.04, state.describe())
        return stored
    report(0.02, "drawing calibration windows")
    if text is None:
        start = int(source.config.get("bos_token_id") or 0)
        windows = sampled_windows(source.model, recipe.windows, recipe.window_length, seed, start)
    else:
        source.tokenizers.check(text, source.name)
        length, choice = recipe.window_length, recipe.window_choice
        windows = text_windows(source.tokenizer, text, recipe.windows, length, seed, choice)
    if int(windows.max()) >= source.decoder.vocab_size:
        raise NqEdgeError(
            "NQ-MODEL",
            f"the tokenizer makes id {int(windows.max())}, the vocabulary has {source.decoder.vocab_size} entries.",
        )
    together = windows.to(device)  # a GPU's messages are a GPU's tensors
    team().take_first([together])
    windows = together.cpu()
    report(0.04, "importances")
    importances = collect_importances(
        source.model,
        linears,
        windows,
        recipe.gamma,
        lambda part: report(0.04 + 0.06 * part, "importances"),
        dtype,
        functools.partial(gradient_pass_by_blocks, source) if source.streamed else None,
    )
    state.keep_start(windows, importances)
    if source.streamed:
        return_freed_memory()
    return windows, importances


def chosen_ranks(
    source: SourceModel,
    linears: dict[str, nn.Linear],
    importances: dict[str, Importance],
    bpw: float,
    recipe: Recipe,
    seed: int,
    state: RunState,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
) -> dict[str, int]:
    """Ranks of all layers by name; measured sensitivities are kept in, and taken from, the state.

    Raises:
        NqEdgeError: NQ-OPTION when the rate is not between 0.05 and 8.
    """
    per_block = len(source.family.linears)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in linears.items()}
    places = {name: place // per_block for place, name in enumerate(linears)}
    shares = None
    if recipe.rank_sensitivity:
        even = allocate_ranks(shapes, places, bpw)
        errors = state.sensitivities(len(even))
        if errors is None:
            errors = measured_errors(
                source.layers(list(linears)),
                importances,
                even,
                device,
                dtype,
                seed,
                lambda part: report(0.10, f"sensitivities {part:.0%}"),
            )
            state.keep_sensitivities(errors)
        shares, _ = rank_shares(errors, even, shapes)
    return allocate_ranks(shapes, places, bpw, recipe.rank_depth, recipe.rank_types, shares)
