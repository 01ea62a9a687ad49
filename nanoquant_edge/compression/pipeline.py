# SPDX-License-Identifier: Apache-2.0
"""The whole of NanoQuant: importances, blocks, scale distillation, a checkpoint (docs/METHOD.md, section 8)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NqEdgeError
from ..formats.checkpoint import (
    Checkpoint,
    CheckpointParts,
    QuantizationSettings,
    true_bits_per_weight,
    write_checkpoint,
)
from ..models.loading import SourceModel, load_model
from ..models.tensors import embedding_name, finite, linear_at, uncompressed_tensors
from ..system.files import check_new_folder
from ..system.memory import return_freed_memory
from ..system.progress import Progress, Show
from .calibrate.curvature import with_curvature
from .calibrate.sources import CalibrationText
from .calibrate.streamed_gradients import resident_limit
from .calibrate.windows import chat_windows, fresh_windows
from .execution.device import chosen_device, peak_mb
from .execution.parallel import joined_team, team
from .options import CompressOptions
from .packed_layers import pack_factors
from .preparation import (
    affordable_recipe,
    calibrated,
    chosen_ranks,
    recipe_in_memory,
    recipe_with_text,
    recipe_within_positions,
)
from .resume import RunState, fingerprint, refuse_state, state_folder
from .run import Run, StageClock
from .sequence import Reconstructed, reconstruct_blocks
from .tables import quantized_tables
from .tune.distillation import distill_scales
from .tune.end_to_end import Tuned, tune_end_to_end
from .tune.optimizer import Outcome

__all__ = ["compress", "compress_source"]


def compress(
    model: str | Path,
    output: str | Path,
    options: CompressOptions | None = None,
    *,
    progress: Show | None = None,
    report: Show | None = None,
    **keywords: Any,
) -> Checkpoint:
    """Compress a model and write the checkpoint folder.

    Holds the dense model in float32, three activation streams of windows x length x hidden float32, a bit for each
    sign of finished layers, and in the last stage a second set of dense-sized layers. With streamed weights, one block
    in place of the model and of the second set, and more streams while importances are collected (docs/notes/gpu.md).

    Args:
        model: Hugging Face folder, .gguf file or hub id.
        output: checkpoint folder; appears when complete.
        options: everything else that a compression may be told; the defaults where it is None.
        progress: called with (fraction done, what is being done).
        report: the former name of `progress`.
        keywords: single options by the names that `CompressOptions` has; they count before `options`.

    Raises:
        NqEdgeError: with a code that says which input is at fault.

    Example:
        >>> checkpoint = compress("model", "checkpoint", bpw=1.0, recipe="quick")
        >>> checkpoint.settings.target_bpw
        1.0
    """
    options = (options or CompressOptions()).changed(**keywords)
    # What can be refused at once is refused before the model is loaded.
    _refuse_output(Path(output), options)
    text = CalibrationText.read(options.sources)
    with joined_team(chosen_device(options.device)) as (processes, device), contextlib.ExitStack() as stack:
        shown = Progress.to(progress or report) if processes.first else Progress()
        shown(0.0, "loading the model")
        source = stack.enter_context(
            load_model(
                model,
                allow_pickle=options.allow_pickle,
                stream=options.stream_weights,
                limit=resident_limit(device),
            )
        )
        shown(0.01, "weights are read block by block" if source.streamed else "the weights are in memory")
        return _compressed(source, Path(output), options, text, device=device, progress=shown)


def compress_source(
    source: SourceModel,
    output: str | Path,
    options: CompressOptions | None = None,
    *,
    progress: Show | None = None,
    **keywords: Any,
) -> Checkpoint:
    """`compress` for a model that is loaded already; the dense model is unchanged afterwards."""
    options = (options or CompressOptions()).changed(**keywords)
    _refuse_output(Path(output), options)
    text, device = CalibrationText.read(options.sources), chosen_device(options.device)
    return _compressed(source, Path(output), options, text, device=device, progress=Progress.to(progress))


def _refuse_output(output: Path, options: CompressOptions) -> None:
    """Raises NQ-OUTPUT or NQ-RESUME for what stands where the checkpoint or the state is going to be."""
    check_new_folder(output, options.overwrite)
    refuse_state(state_folder(output), resume=options.resume, overwrite=options.overwrite)


def _compressed(
    source: SourceModel,
    output: Path,
    options: CompressOptions,
    text: CalibrationText | None,
    *,
    device: torch.device,
    progress: Progress,
) -> Checkpoint:
    """Compress a loaded model on this process's device, with calibration windows from `text`."""
    clock = StageClock()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and graphs are made on the current device
    _refuse_streaming(source, text)
    with clock.stage("loading and checks"):
        weights = fingerprint(finite(source.weights()), source.config)
        model = source.move_to(device)
        names = source.family.layer_names(source.decoder.num_layers)
        linears = {name: linear_at(model, name) for name in names}
        recipe, too_long = recipe_within_positions(options.schedule, source.decoder.max_positions)
        in_a_block = len(source.family.linears)
        recipe, too_large = affordable_recipe(recipe, linears, in_a_block=in_a_block, device=device)
        recipe, too_little = recipe_with_text(recipe, text, streamed=source.streamed)
        recipe, too_wide = recipe_in_memory(recipe, streamed=source.streamed)
        left_out = too_long + too_large + too_little + too_wide
        for part in left_out:
            progress(0.01, f"without {part}")
        others = uncompressed_tensors(source.weights(without=names), source.decoder.tied)
        if source.streamed:
            return_freed_memory()
    dtype = options.compute_type(device)
    identity = {
        "recipe": recipe.to_dict(),
        "bpw": options.bpw,
        "seed": options.seed,
        "model": weights,
        "calibration text": None if text is None else text.digest(),
        "device": device.type,
        "compute type": str(dtype),
    }
    state = RunState(
        state_folder(output), identity, resume=options.resume, overwrite=options.overwrite, writes=team().first
    )
    team().wait()
    run = Run(recipe, device, dtype, seed=options.seed, progress=progress, state=state, clock=clock)
    with state.in_use():
        stages = _through_stages(source, linears, text, bpw=options.bpw, run=run)
        progress(0.99, "writing the checkpoint")
        reconstructed = stages.reconstructed
        layers = {name: pack_factors(name, reconstructed.factors[name], options.scale_dtype) for name in names}
        tables = {}
        if options.embedding != "fp16":
            tables = quantized_tables(model, reconstructed.states, options.embedding, source.decoder.tied)
        table_type = options.embedding if tables else str(others[embedding_name(model)].dtype)
        settings = QuantizationSettings(
            target_bpw=options.bpw,
            true_bpw=true_bits_per_weight(layers.values()),
            ranks=stages.ranks,
            scale_dtype=options.scale_dtype,
            embedding=table_type,
            head="tied" if source.decoder.tied else table_type,
            recipe={
                **_provenance(run, stages),
                "left_out": left_out,
                "streamed": source.streamed,
                "source": source.name,
                "source_note": source.note,
            },
            calibration={
                "text": options.calibration_name,
                "windows": len(stages.windows),
                "conversations": chat_windows(source, recipe.chat_share, len(stages.windows)),
                "window_length": stages.windows.shape[1],
                "seed": options.seed,
            },
        )
        if team().first:
            parts = CheckpointParts(source.config, settings, layers, others, tables)
            write_checkpoint(output, parts, companions=source.companions, overwrite=options.overwrite)
            state.finish()
    team().wait()
    return Checkpoint(output)


@dataclass
class _Stages:
    """What the stages of a compression made."""

    windows: Tensor
    ranks: dict[str, int]
    reconstructed: Reconstructed
    distilled: Outcome
    tuned: Tuned


def _through_stages(
    source: SourceModel, linears: dict[str, nn.Linear], text: CalibrationText | None, *, bpw: float, run: Run
) -> _Stages:
    """All stages in order, each with its part of the progress and of the clock."""
    model, recipe, clock = source.model, run.recipe, run.clock
    with clock.stage("importances"):
        windows, importances = calibrated(source, linears, text, run.part(0.02, 0.10))
    measured_until = 0.14 if recipe.rank_sensitivity else 0.10
    measuring = run.part(0.10, measured_until, "sensitivities")
    ranks = chosen_ranks(source, linears, importances, windows=windows, bpw=bpw, run=measuring)
    fitted_until = measured_until + (0.06 if recipe.curvature else 0.0)
    if recipe.curvature:
        # Not kept for --resume: three passes give it again.
        with clock.stage("curvature"):
            fitting = run.part(measured_until, fitted_until, "curvature")
            importances = with_curvature(source, linears, windows=windows, importances=importances, run=fitting)
    with clock.stage("blocks"):
        rest = run.part(fitted_until, 0.88)
        reconstructed = reconstruct_blocks(source, windows, importances=importances, ranks=ranks, run=rest)
    run.progress(0.88, "distilling scales")
    blocks = source.family.blocks
    with clock.stage("distillation"), source.opened(blocks, without=linears):
        distilled = distill_scales(
            model,
            model.get_submodule(blocks),
            reconstructed.factors,
            windows=windows,
            teacher=reconstructed.states,
            run=run.part(0.88, 0.95 if recipe.end_to_end_tokens else 0.99, "distilling scales"),
            packed=source.streamed,
        )
    tuned = Tuned(math.nan, math.nan)
    if recipe.end_to_end_tokens and text is not None:
        tuning = run.part(0.95, 0.99, "tuning scales from end to end")
        with clock.stage("end to end"):
            fresh = fresh_windows(source, text, tuning)
            tuned = tune_end_to_end(
                model, model.get_submodule(blocks), reconstructed.factors, windows=fresh, run=tuning
            )
    return _Stages(windows, ranks, reconstructed, distilled, tuned)


def _refuse_streaming(source: SourceModel, text: CalibrationText | None) -> None:
    """Raises NQ-OPTION for what needs all weights in memory, where they are streamed."""
    hint = "or --no-stream-weights where the model fits in memory."
    if source.streamed and (text is None or text.written):
        message = "a model whose weights are streamed cannot write its own calibration text."
        raise NqEdgeError("NQ-OPTION", message, f"Pass --calibration, {hint}")


def _provenance(run: Run, stages: _Stages) -> dict[str, Any]:
    """How the checkpoint came about, as JSON: the recipe, where it ran, how long it took, and what became of losses."""
    distilled, reconstructed = stages.distilled, stages.reconstructed
    whole = [("scale distillation", distilled), ("tuning from end to end", stages.tuned)]
    return {
        **run.recipe.to_dict(),
        "seed": run.seed,
        "device": run.device.type,
        "compute_dtype": str(run.dtype).removeprefix("torch."),
        "seconds": round(run.clock.total, 1),
        "stage_seconds": run.clock.to_dict(),
        "peak_mb": peak_mb(run.device),
        "block_errors": reconstructed.errors,
        "undone": reconstructed.undone + [name for name, outcome in whole if outcome.undone],
        "end_to_end_loss": round(stages.tuned.last, 4) if math.isfinite(stages.tuned.last) else None,
        "end_to_end_flips": stages.tuned.flips,
        "kd_loss": [loss for loss in (distilled.first, distilled.last) if math.isfinite(loss)],
    }
