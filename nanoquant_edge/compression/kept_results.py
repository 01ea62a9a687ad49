# SPDX-License-Identifier: Apache-2.0
"""Results of the stages as files of a run's state, and back.

`start.safetensors` holds the calibration windows and the importances, `sensitivities.safetensors` what ranks were made
from where it was measured, `block-0000.safetensors` and so on the finished blocks (packed signs, float32 scales). The
streams are not kept: running the finished blocks again gives them, bit for bit on a CPU at equally many threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .calibrate.importances import Importance
from .resume import RunState
from .tune.layers import SignFactors

__all__ = [
    "FinishedBlock",
    "keep_block",
    "keep_sensitivities",
    "keep_start",
    "kept_block",
    "kept_sensitivities",
    "kept_start",
]

_START, _SENSITIVITIES = "start.safetensors", "sensitivities.safetensors"


@dataclass
class FinishedBlock:
    """One block's outcome.

    Attributes:
        factors: linear name inside the block -> hardened factors.
        error: mean relative weighted error of its factorizations.
        undone: (stage, linear name) of the tuning stages that were reverted.
    """

    factors: dict[str, SignFactors]
    error: float
    undone: list[tuple[str, str]]


def keep_start(state: RunState, windows: Tensor, importances: Mapping[str, Importance]) -> None:
    """Keep the calibration windows and the importances."""
    parts = {f"{name}.{part}": getattr(i, part) for name, i in importances.items() for part in ("inputs", "outputs")}
    state.write(_START, {"windows": windows, **parts})


def kept_start(state: RunState, layers: Mapping[str, nn.Linear]) -> tuple[Tensor, dict[str, Importance]] | None:
    """The kept windows and importances, or None."""
    shapes = {f"{name}.inputs": (layer.in_features,) for name, layer in layers.items()}
    shapes.update({f"{name}.outputs": (layer.out_features,) for name, layer in layers.items()})
    read = state.read(_START, shapes, ("windows",))
    if read is None:
        return None
    found, _ = read
    return found["windows"], {name: Importance(found[f"{name}.inputs"], found[f"{name}.outputs"]) for name in layers}


def keep_sensitivities(state: RunState, errors: Tensor) -> None:
    """Keep the measured errors that ranks were made from: on a GPU another measurement may round another way."""
    state.write(_SENSITIVITIES, {"errors": errors})


def kept_sensitivities(state: RunState, layers: int) -> Tensor | None:
    """The kept errors, (layers, 3), or None."""
    read = state.read(_SENSITIVITIES, {"errors": (layers, 3)})
    if read is None:
        return None
    errors = read[0]["errors"]
    if not bool(torch.isfinite(errors).all()):
        raise state.damaged(_SENSITIVITIES)
    return errors


def _block_file(index: int) -> str:
    return f"block-{index:04d}.safetensors"


def keep_block(state: RunState, index: int, block: FinishedBlock) -> None:
    """Keep a finished block."""
    tensors: dict[str, Tensor] = {}
    for name, factors in block.factors.items():
        tensors[f"{name}.u"], tensors[f"{name}.v"] = factors.u_words, factors.v_words
        tensors[f"{name}.scale_out"], tensors[f"{name}.scale_in"] = factors.scale_out, factors.scale_in
        if factors.bias is not None:
            tensors[f"{name}.bias"] = factors.bias
    state.write(_block_file(index), tensors, {"error": repr(block.error), "undone": json.dumps(block.undone)})


def kept_block(
    state: RunState, index: int, layers: Mapping[str, nn.Linear], ranks: Mapping[str, int]
) -> FinishedBlock | None:
    """A kept block, or None; a block is only taken where all blocks before it were kept.

    Args:
        state: of the run.
        index: of the block.
        layers: linear name -> a layer of the same shape.
        ranks: linear name -> rank.
    """
    if not all(state.has(_block_file(before)) for before in range(index + 1)):
        return None
    file = _block_file(index)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        m, n, r = layer.out_features, layer.in_features, ranks[name]
        shapes[f"{name}.u"], shapes[f"{name}.v"] = (m, -(-r // 32)), (r, -(-n // 32))
        shapes[f"{name}.scale_out"], shapes[f"{name}.scale_in"] = (m,), (n,)
        if layer.bias is not None:
            shapes[f"{name}.bias"] = (m,)
    read = state.read(file, shapes)
    if read is None:
        return None
    found, notes = read
    factors = {}
    for name in layers:
        u, v = found[f"{name}.u"], found[f"{name}.v"]
        if {u.dtype, v.dtype} != {torch.int32}:
            raise state.damaged(file)
        scales = found[f"{name}.scale_out"], found[f"{name}.scale_in"]
        factors[name] = SignFactors.from_words(u, v, *scales, found.get(f"{name}.bias"))
    try:
        undone = [(str(stage), str(name)) for stage, name in json.loads(notes.get("undone", "[]"))]
        return FinishedBlock(factors, float(notes.get("error", "nan")), undone)
    except ValueError as error:
        raise state.damaged(file) from error
