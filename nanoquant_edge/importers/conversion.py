# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of another NanoQuant implementation, and the model it was made from, become one of ours.

The packed words and scales are taken over bit by bit. Such files hold little else: configuration, tokenizer and
whatever they lack (usually embedding and norms) come from the dense model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint.layer import PackedLayer
from ..formats.checkpoint.reader import Checkpoint
from ..formats.checkpoint.settings import QuantizationSettings
from ..formats.checkpoint.writer import CheckpointParts, true_bits_per_weight, write_checkpoint
from ..system.files import check_new_folder
from ..system.progress import Progress, Show
from .files import read_foreign
from .layers import foreign_layers, is_part

if TYPE_CHECKING:
    from ..models.source import SourceModel

__all__ = ["import_checkpoint"]


def import_checkpoint(
    source: str | Path,
    base: str | Path,
    *,
    output: str | Path,
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: Show | None = None,
) -> Checkpoint:
    """Import a checkpoint that the official code or arelath/NanoQuant wrote.

    Args:
        source: a `torch.save` file (read as tensors only), safetensors, or a GGUF file.
        base: the dense model it was made from: folder, .gguf file or hub id.
        output: checkpoint folder; appears when complete.
        overwrite: replace a checkpoint that stands there.
        allow_pickle: read `base` from pickle files where it has no safetensors; tensors only.
        progress: told how far it is.

    Raises:
        NqEdgeError: NQ-CKPT when `source` is damaged, foreign or does not fit `base`, NQ-NUMERIC when a scale is not
            finite; whatever loading `base` and writing raise.
    """
    from ..models.loading import load_model

    source, told = Path(source), Progress.to(progress)
    if not source.exists():
        raise NqEdgeError("NQ-CKPT", f"{source} does not exist.", "Pass the file that the other program wrote.")
    check_new_folder(Path(output), overwrite)
    told(0.0, "loading the base model")
    with load_model(base, allow_pickle=allow_pickle) as dense:
        told(0.5, "reading the packed factors")
        tensors = read_foreign(source, dense.decoder)
        layers = foreign_layers(tensors)
        if not layers:
            raise NqEdgeError(
                "NQ-CKPT",
                f"{source} holds no packed NanoQuant layers.",
                "Pass a checkpoint with packed factors (V_packed and U_packed, or nq_v and nq_u).",
            )
        settings, others, layers = _checked(source, dense, layers, tensors, told.part(0.6, 0.9))
        told(0.9, "writing the checkpoint")
        parts = CheckpointParts(dense.config, settings, layers, others)
        made = write_checkpoint(Path(output), parts, companions=dense.companions, overwrite=overwrite)
        told(1.0, "done")
        return made


def _checked(
    source: Path, dense: SourceModel, found: dict[str, PackedLayer], tensors: dict[str, Any], progress: Progress
) -> tuple[QuantizationSettings, dict[str, NDArray[np.generic]], dict[str, PackedLayer]]:
    """What a checkpoint is written of: its settings, the tensors that stay dense, and the compressed layers."""
    from ..models.tensors import embedding_name, finite, uncompressed_tensors

    names = dense.family.layer_names(dense.decoder.num_layers)
    odd = sorted(set(names) ^ set(found))
    if odd:
        side = "has no layer" if odd[0] in names else "compresses"
        raise NqEdgeError(
            "NQ-CKPT", f"{source} does not fit {dense.name}: it {side} {odd[0]} ({len(odd)} differences)."
        )
    others = uncompressed_tensors(finite(dense.weights(without=names)), dense.decoder.tied)
    fitted = {}
    for index, name in enumerate(names):
        progress(index / len(names), "fitting layers to the base model")
        fitted[name] = _fitted(name, found[name], dense.model.get_submodule(name))
    layers, scale_dtype = _one_type(fitted)
    tied = dense.decoder.tied
    taken = {name: tensors[name] for name in others if name in tensors}
    left = sorted(name for name in tensors if name not in taken and not is_part(name, layers))
    if left:
        raise NqEdgeError(
            "NQ-CKPT",
            f"{source} holds {len(left)} tensors that the model has no place for, the first is {left[0][:200]}.",
        )
    for name, array in taken.items():
        if tuple(array.shape) != others[name].shape or not np.isfinite(np.asarray(array, np.float32)).all():
            raise NqEdgeError("NQ-CKPT", f"{source}: {name} has shape {tuple(array.shape)} or is not finite.")
        others[name] = np.asarray(array, np.float32).astype(others[name].dtype)
    embedding = str(others[embedding_name(dense.model)].dtype)
    rate = true_bits_per_weight(layers.values())
    settings = QuantizationSettings(
        target_bpw=round(rate, 4),
        true_bpw=rate,
        ranks={name: layer.rank for name, layer in layers.items()},
        scale_dtype=scale_dtype,
        embedding=embedding,
        head="tied" if tied else embedding,
        recipe={
            "name": "imported",
            "source": dense.name,
            "source_note": dense.note,
            "imported_from": source.name,
            "taken_over": sorted(taken)[:64],
        },
    )
    return settings, others, layers


def _fitted(name: str, layer: PackedLayer, linear: Any) -> PackedLayer:
    """The layer with the dense model's bias where the file has none, seen to be of the linear's shape."""
    if (layer.out_features, layer.in_features) != tuple(linear.weight.shape):
        raise NqEdgeError(
            "NQ-CKPT",
            f"{name} is {layer.out_features} x {layer.in_features}, the model's is {tuple(linear.weight.shape)}.",
            "Name the model that the checkpoint was made from with --base.",
        )
    bias = layer.bias
    if linear.bias is None and bias is not None:
        raise NqEdgeError("NQ-CKPT", f"{name} has a bias, and the model's layer has none.")
    if bias is None and linear.bias is not None:
        bias = linear.bias.detach().numpy().astype(np.float32)
    return replace(layer, bias=bias)


def _one_type(layers: dict[str, PackedLayer]) -> tuple[dict[str, PackedLayer], str]:
    """Layers whose scales are all of one type, as a checkpoint wants them: float32 when the file mixes types."""
    kinds = {value.dtype.name for layer in layers.values() for value in _scales(layer).values()}
    if len(kinds) == 1:
        return layers, kinds.pop()
    wide = {
        name: replace(layer, **{part: value.astype(np.float32) for part, value in _scales(layer).items()})
        for name, layer in layers.items()
    }
    return wide, "float32"


def _scales(layer: PackedLayer) -> dict[str, Any]:
    parts = {part: getattr(layer, part) for part in ("scale_out", "scale_in", "scale_mid")}
    return {part: value for part, value in parts.items() if value is not None}
