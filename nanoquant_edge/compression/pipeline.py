# SPDX-License-Identifier: Apache-2.0
"""The whole of NanoQuant: importances, blocks, scale distillation, a checkpoint (docs/METHOD.md, section 8)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import NqEdgeError
from ..formats.checkpoint import Checkpoint, QuantizationSettings, true_bits_per_weight, write_checkpoint
from ..formats.checkpoint.settings import SCALE_DTYPES
from ..models.loading import SourceModel, load_model
from ..models.tensors import embedding_name, finite, linear_at, uncompressed_tensors
from ..system.files import check_new_folder
from ..system.memory import return_freed_memory
from .calibrate.curvature import with_curvature
from .calibrate.ranks import rank_for_rate
from .calibrate.streamed_gradients import resident_limit
from .calibrate.text import read_text
from .execution.parallel import joined_team, team
from .execution.precision import preferred_dtype
from .options import Recipe
from .packed_layers import pack_factors
from .preparation import calibrated, chosen_ranks
from .resources import affordable, chosen_device, peak_mb
from .resume import RunState, fingerprint
from .sequence import reconstruct_blocks
from .tables import check_format, quantized_tables
from .tune.distillation import distill_scales

__all__ = ["compress", "compress_source"]

Report = Callable[[float, str], None]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _quiet(_fraction: float, _text: str) -> None:
    """Report to nobody."""


def compress(
    model: str | Path,
    output: str | Path,
    *,
    bpw: float = 1.0,
    recipe: str | Recipe = "balanced",
    calibration: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    compute_dtype: str = "auto",
    scale_dtype: str = "float16",
    embedding: str = "fp16",
    overwrite: bool = False,
    allow_pickle: bool = False,
    resume: bool = False,
    stream_weights: bool | None = None,
    report: Report = _quiet,
) -> Checkpoint:
    """Compress a model and write the checkpoint folder.

    Holds the dense model in float32, three activation streams of windows x length x hidden float32, a bit for each
    sign of finished layers, and in the last stage a second set of dense-sized layers. With streamed weights, one block
    in place of the model and of the second set, and more streams while importances are collected (docs/notes/gpu.md).

    Args:
        model: Hugging Face folder, .gguf file or hub id.
        output: checkpoint folder; appears when complete.
        bpw: target bits per weight of the compressed layers.
        recipe: preset name or a Recipe.
        calibration: UTF-8 text file; None lets the model write its own calibration text.
        seed: of windows, initial factors and sample order.
        device: "auto", "cpu", "cuda" or "cuda:N".
        compute_dtype: "auto", "float32" or "bfloat16", for matrix products while tuning.
        scale_dtype: storage type of the scales.
        embedding: storage of embedding and head: "fp16", "int8" or "int4".
        overwrite: replace a checkpoint at `output`, and the state of an interrupted run.
        resume: continue an interrupted run for `output`, whose state lies beside it; nothing there starts a new one.
        allow_pickle: read pickle weights where there are no safetensors; tensors only.
        stream_weights: read each block's weights from the safetensors files when they are needed; None does so where
            the float32 model would take more than half of the free memory.
        report: called with (fraction done, what is being done).

    Raises:
        NqEdgeError: with a code that says which input is at fault.
    """
    chosen = Recipe.preset(recipe) if isinstance(recipe, str) else recipe
    # What can be refused at once is refused before the model is loaded.
    rank_for_rate(64, 64, bpw)
    where = chosen_device(device)
    check_new_folder(Path(output), overwrite)
    text = None if calibration is None else read_text(calibration)
    with joined_team(where) as (together, own), contextlib.ExitStack() as stack:
        report = report if together.first else _quiet
        report(0.0, "loading the model")
        limit = resident_limit(own)
        source = stack.enter_context(load_model(model, allow_pickle=allow_pickle, stream=stream_weights, limit=limit))
        report(0.01, "weights are read block by block" if source.streamed else "the weights are in memory")
        name = "self-generated" if calibration is None else Path(calibration).name
        return compress_source(
            source,
            output,
            bpw=bpw,
            recipe=chosen,
            text=text,
            text_name=name,
            seed=seed,
            device=str(own),
            compute_dtype=compute_dtype,
            scale_dtype=scale_dtype,
            embedding=embedding,
            overwrite=overwrite,
            resume=resume,
            report=report,
        )


def compress_source(
    source: SourceModel,
    output: str | Path,
    *,
    bpw: float,
    recipe: Recipe,
    text: str | None,
    text_name: str,
    seed: int = 0,
    device: str = "auto",
    compute_dtype: str = "auto",
    scale_dtype: str = "float16",
    embedding: str = "fp16",
    overwrite: bool = False,
    resume: bool = False,
    report: Report = _quiet,
) -> Checkpoint:
    """`compress` for a model that is loaded already; the dense model is unchanged afterwards."""
    started = time.monotonic()
    check_new_folder(Path(output), overwrite)
    where = chosen_device(device)
    if compute_dtype != "auto" and compute_dtype not in _DTYPES:
        raise NqEdgeError("NQ-OPTION", f"compute_dtype must be auto, float32 or bfloat16, not {compute_dtype!r}.")
    if scale_dtype not in SCALE_DTYPES:
        raise NqEdgeError("NQ-OPTION", f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, not {scale_dtype!r}.")
    check_format(embedding)
    dtype = preferred_dtype(where) if compute_dtype == "auto" else _DTYPES[compute_dtype]
    if where.type == "cuda":
        torch.cuda.set_device(where)  # streams and graphs are made on the current device
    _refuse_streaming(source, text)
    model = source.place(where)
    family, decoder = source.family, source.decoder
    names = family.layer_names(decoder.num_layers)
    linears = {name: linear_at(model, name) for name in names}
    recipe, left_out = affordable(recipe, linears, source.streamed, where)
    for part in left_out:
        report(0.01, f"without {part}")
    identity = fingerprint(finite(source.weights()))
    others = uncompressed_tensors(source.weights(without=names), decoder.tied)
    if source.streamed:
        return_freed_memory()

    clock = {"loading and checks": time.monotonic() - started}
    state = RunState(
        Path(output).absolute().with_name(Path(output).name + ".resume"),
        {
            "recipe": recipe.to_dict(),
            "bpw": bpw,
            "seed": seed,
            "model": identity,
            "calibration text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
            "device": where.type,
            "compute type": str(dtype),
        },
        resume,
        overwrite,
        team().first,
    )
    team().wait()
    windows, importances = calibrated(source, linears, recipe, text, seed, state, where, dtype, report)
    clock["importances"] = time.monotonic() - started - sum(clock.values())
    ranks = chosen_ranks(source, linears, importances, bpw, recipe, seed, state, where, dtype, report)
    if recipe.rank_sensitivity:
        clock["sensitivities"] = time.monotonic() - started - sum(clock.values())
    if recipe.curvature:
        # Not kept for --resume: it is larger than the model, and three passes give it again.
        importances = with_curvature(
            model, linears, windows, importances, lambda part: report(0.10, f"curvature {part:.0%}"), dtype
        )
        clock["curvature"] = time.monotonic() - started - sum(clock.values())
    reconstructed = reconstruct_blocks(
        source,
        windows,
        importances,
        ranks,
        recipe,
        seed,
        where,
        dtype,
        state,
        lambda part, what: report(0.10 + 0.78 * part, what),
    )
    factors = reconstructed.factors
    clock["blocks"] = time.monotonic() - started - sum(clock.values())
    report(0.88, "distilling scales")
    blocks = model.get_submodule(family.blocks)
    with source.opened(family.blocks, without=names):
        outcome = distill_scales(
            model,
            blocks,
            factors,
            windows,
            reconstructed.states,
            recipe,
            seed,
            where,
            dtype,
            lambda part: report(0.88 + 0.11 * part, "distilling scales"),
            packed=source.streamed,
        )
    clock["distillation"] = time.monotonic() - started - sum(clock.values())
    report(0.99, "writing the checkpoint")
    layers = {name: pack_factors(name, factors[name], scale_dtype) for name in names}
    tables = {} if embedding == "fp16" else quantized_tables(model, reconstructed.states, embedding, decoder.tied)
    stored_as = embedding if tables else str(others[embedding_name(model)].dtype)
    settings = QuantizationSettings(
        target_bpw=bpw,
        true_bpw=true_bits_per_weight(layers.values()),
        ranks=ranks,
        scale_dtype=scale_dtype,
        embedding=stored_as,
        head="tied" if decoder.tied else stored_as,
        recipe={
            **recipe.to_dict(),
            "seed": seed,
            "device": where.type,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "seconds": round(time.monotonic() - started, 1),
            "stage_seconds": {name: round(value, 1) for name, value in clock.items()} | reconstructed.seconds,
            "peak_mb": peak_mb(where),
            "block_errors": reconstructed.errors,
            "undone": reconstructed.undone + (["scale distillation"] if outcome.undone else []),
            "kd_loss": [x for x in (outcome.first, outcome.last) if math.isfinite(x)],
            "left_out": left_out,
            "streamed": source.streamed,
            "source": source.name,
            "source_note": source.note,
        },
        calibration={"text": text_name, "windows": len(windows), "window_length": windows.shape[1], "seed": seed},
    )
    if team().first:
        write_checkpoint(output, source.config, settings, layers, others, source.companions, overwrite, tables=tables)
        state.finish()
    team().wait()
    return Checkpoint(Path(output))


def _refuse_streaming(source: SourceModel, text: str | None) -> None:
    """Raises NQ-OPTION for what needs all weights in memory, where they are streamed."""
    hint = "or --no-stream-weights where the model fits in memory."
    if source.streamed and text is None:
        message = "a model whose weights are streamed cannot write its own calibration text."
        raise NqEdgeError("NQ-OPTION", message, f"Pass --calibration, {hint}")
