# SPDX-License-Identifier: Apache-2.0
"""What a run has to go on: its device, and what there is no memory for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..errors import NqEdgeError
from ..system.memory import peak_memory_mb
from .calibrate.curvature import no_room
from .execution.parallel import team
from .options import Recipe

__all__ = ["affordable", "chosen_device", "peak_mb"]


def chosen_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" names; a GPU always with its number.

    Raises:
        NqEdgeError: NQ-OPTION when there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    if device.type == "cuda" and device.index is None:  # what asks for a GPU's memory wants its number
        return torch.device("cuda", torch.cuda.current_device())
    return device


def affordable(
    recipe: Recipe, linears: dict[str, nn.Linear], streamed: bool, device: torch.device
) -> tuple[Recipe, list[str]]:
    """The recipe without what there is no memory for, and what was left out, with the reason.

    Args:
        recipe: as asked for.
        linears: name -> layer to compress.
        streamed: whether weights are read block by block.
        device: where to run.
    """
    if not recipe.curvature:
        return recipe, []
    reason = "weights that are streamed leave none" if streamed else no_room(linears, device)
    lacking = torch.tensor([len(reason)], device=device)
    team().take_first([lacking])  # all processes decide as the first one does
    if not int(lacking):
        return recipe, []
    return replace(recipe, curvature=False), [f"curvature, for want of memory ({reason or 'in the first process'})"]


def peak_mb(device: torch.device) -> float:
    """Most memory held so far, 10^6 bytes: the device's on a GPU, else the process's."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb(), 1)
