# SPDX-License-Identifier: Apache-2.0
"""The whole of NanoQuant: importances, blocks in order, scale distillation, a checkpoint (method section 5)."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint, QuantizationSettings, true_bits_per_weight, write_checkpoint
from ..checkpoint.settings import SCALE_DTYPES
from ..errors import NqEdgeError
from ..files import check_new_folder
from ..models.loading import SourceModel, load_model
from .block import BlockCall, reconstruct_block
from .calibration import read_text, sampled_windows, text_windows
from .distillation import distill_scales
from .importance import Importance, collect_importances
from .layers import SignFactors
from .optimize import preferred_dtype
from .packing import pack_factors
from .ranks import rank_for_rate
from .recipe import Recipe
from .tensors import embedding_name, linear_at, refuse_non_finite, uncompressed_tensors

__all__ = ["compress", "compress_source"]

Report = Callable[[float, str], None]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Tokens of a block's stream that are computed at one time.
_STREAM_TOKENS = 4096


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
    overwrite: bool = False,
    allow_pickle: bool = False,
    report: Report = _quiet,
) -> Checkpoint:
    """Compress a model and write the checkpoint folder.

    Holds the dense model in float32, two activation streams of windows x length x hidden float32, the int8 signs
    of finished layers, and in the last stage a second set of dense-sized layers.

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
        overwrite: replace a checkpoint at `output`.
        allow_pickle: read pickle weights where there are no safetensors; tensors only.
        report: called with (fraction done, what is being done).

    Raises:
        NqEdgeError: with a code that says which input is at fault.
    """
    chosen = Recipe.preset(recipe) if isinstance(recipe, str) else recipe
    # What can be refused at once is refused before the model is loaded.
    rank_for_rate(64, 64, bpw)
    _device(device)
    check_new_folder(Path(output), overwrite)
    text = None if calibration is None else read_text(calibration)
    report(0.0, "loading the model")
    with load_model(model, allow_pickle=allow_pickle) as source:
        name = "self-generated" if calibration is None else Path(calibration).name
        return compress_source(
            source,
            output,
            bpw=bpw,
            recipe=chosen,
            text=text,
            text_name=name,
            seed=seed,
            device=device,
            compute_dtype=compute_dtype,
            scale_dtype=scale_dtype,
            overwrite=overwrite,
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
    overwrite: bool = False,
    report: Report = _quiet,
) -> Checkpoint:
    """`compress` for a model that is loaded already; the dense model is unchanged afterwards."""
    started = time.monotonic()
    check_new_folder(Path(output), overwrite)
    where = _device(device)
    if compute_dtype != "auto" and compute_dtype not in _DTYPES:
        raise NqEdgeError("NQ-OPTION", f"compute_dtype must be auto, float32 or bfloat16, not {compute_dtype!r}.")
    if scale_dtype not in SCALE_DTYPES:
        raise NqEdgeError("NQ-OPTION", f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, not {scale_dtype!r}.")
    dtype = preferred_dtype(where) if compute_dtype == "auto" else _DTYPES[compute_dtype]
    model = source.model.to(where).requires_grad_(False)
    family, decoder = source.family, source.decoder
    names = family.layer_names(decoder.num_layers)
    linears = {name: linear_at(model, name) for name in names}
    refuse_non_finite(model)
    others = uncompressed_tensors(model, names, decoder.tied)

    report(0.02, "drawing calibration windows")
    if text is None:
        start = int(source.config.get("bos_token_id") or 0)
        windows = sampled_windows(model, recipe.windows, recipe.window_length, seed, start)
    else:
        windows = text_windows(source.tokenizer, text, recipe.windows, recipe.window_length, seed)
    if int(windows.max()) >= decoder.vocab_size:
        raise NqEdgeError(
            "NQ-MODEL", f"the tokenizer makes id {int(windows.max())}, the vocabulary has {decoder.vocab_size} entries."
        )
    report(0.04, "importances")
    importances = collect_importances(
        model, linears, windows, recipe.gamma, lambda part: report(0.04 + 0.06 * part, "importances"), dtype
    )
    ranks = {name: rank_for_rate(layer.out_features, layer.in_features, bpw) for name, layer in linears.items()}
    reconstructed = _reconstruct(source, windows, importances, ranks, recipe, seed, where, dtype, report)
    factors = reconstructed.factors
    report(0.88, "distilling scales")
    blocks = model.get_submodule(family.blocks)
    outcome = distill_scales(
        model,
        blocks,
        factors,
        windows,
        recipe,
        seed,
        where,
        dtype,
        lambda part: report(0.88 + 0.11 * part, "distilling scales"),
    )
    report(0.99, "writing the checkpoint")
    layers = {name: pack_factors(name, factors[name], scale_dtype) for name in names}
    embedding = str(others[embedding_name(model)].dtype)
    settings = QuantizationSettings(
        target_bpw=bpw,
        true_bpw=true_bits_per_weight(layers.values()),
        ranks=ranks,
        scale_dtype=scale_dtype,
        embedding=embedding,
        head="tied" if decoder.tied else embedding,
        recipe={
            **recipe.to_dict(),
            "seed": seed,
            "device": where.type,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "seconds": round(time.monotonic() - started, 1),
            "peak_mb": _peak_mb(where),
            "block_errors": reconstructed.errors,
            "undone": reconstructed.undone + (["scale distillation"] if outcome.undone else []),
            "kd_loss": [x for x in (outcome.first, outcome.last) if math.isfinite(x)],
            "source": source.name,
            "source_note": source.note,
        },
        calibration={"text": text_name, "windows": len(windows), "window_length": windows.shape[1], "seed": seed},
    )
    return write_checkpoint(output, source.config, settings, layers, others, source.companions, overwrite)


@dataclass
class _Reconstructed:
    """All blocks: full name -> factors, each block's mean weighted error, and the tuning stages that were reverted."""

    factors: dict[str, SignFactors] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)


def _reconstruct(
    source: SourceModel,
    windows: Tensor,
    importances: dict[str, Importance],
    ranks: dict[str, int],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
) -> _Reconstructed:
    """All blocks in order, the dense and the compressed stream side by side."""
    model, family = source.model, source.family
    blocks = model.get_submodule(family.blocks)
    arguments = _recorded_arguments(model, blocks, windows[:1].to(device))
    batch = max(1, _STREAM_TOKENS // windows.shape[1])
    with torch.no_grad():
        dense_stream = torch.cat([model.get_input_embeddings()(part.to(device)) for part in windows.split(batch)])
    compressed_stream = dense_stream.clone()
    done = _Reconstructed()
    for index, dense in enumerate(blocks):
        prefix = f"{family.blocks}.{index}."
        call = BlockCall(arguments[index], device, dtype)
        targets = call.over(dense, dense_stream, batch)

        def inside(part: float, text: str, block: int = index) -> None:
            fraction = (block + part) / len(blocks)
            report(0.10 + 0.78 * fraction, f"block {block + 1} of {len(blocks)}: {text}")

        result = reconstruct_block(
            dense,
            family.linears,
            {name: ranks[prefix + name] for name in family.linears},
            {name: importances[prefix + name] for name in family.linears},
            importances[prefix + family.last_linear].outputs,
            compressed_stream,
            targets,
            call,
            recipe,
            seed,
            inside,
        )
        done.factors.update({prefix + name: value for name, value in result.factors.items()})
        done.errors.append(round(sum(result.errors.values()) / len(result.errors), 4))
        for name, outcomes in result.losses.items():
            stages = zip(("TuneFP", "TuneLatentSTE"), outcomes, strict=True)
            done.undone += [f"{stage} of {prefix}{name}" for stage, outcome in stages if outcome.undone]
        compressed_stream = call.over(result.block, compressed_stream, batch)
        dense_stream = targets
        if not bool(torch.isfinite(compressed_stream).all()):
            raise NqEdgeError("NQ-NUMERIC", f"block {index} of the compressed model gives NaN or infinity.")
    return done


def _recorded_arguments(model: Any, blocks: nn.ModuleList, ids: Tensor) -> list[dict[str, Any]]:
    """Keyword arguments each block is called with, for one window; each block its own (method section 13.7)."""
    recorded: list[dict[str, Any]] = []

    def hook(_module: nn.Module, _arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        kept = {name: value for name, value in keywords.items() if name not in ("past_key_values", "hidden_states")}
        recorded.append({**kept, "use_cache": False})

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return recorded


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hint = "Use auto, cpu, cuda or cuda:N."
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise NqEdgeError("NQ-OPTION", f"{name!r} is not a device.", hint) from error
    if device.type not in ("cpu", "cuda"):
        raise NqEdgeError("NQ-OPTION", f"device {name!r} is not supported.", hint)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NqEdgeError("NQ-OPTION", "this PyTorch sees no CUDA device.", "Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NqEdgeError("NQ-OPTION", f"there are {torch.cuda.device_count()} CUDA devices, so no {name!r}.", hint)
    return device


def _peak_mb(device: torch.device) -> float:
    """Most memory held so far, 10^6 bytes: the device's on a GPU, else the process's."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round((torch.cuda.max_memory_allocated(device) if device.type == "cuda" else host) / 1e6, 1)
