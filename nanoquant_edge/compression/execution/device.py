# SPDX-License-Identifier: Apache-2.0
"""The device that a run is for, and the most memory that it took there."""

from __future__ import annotations

import torch

from ...errors import NqEdgeError
from ...system.memory import peak_memory_mb

__all__ = ["chosen_device", "peak_mb"]


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


def peak_mb(device: torch.device) -> float:
    """Most memory held so far, 10^6 bytes: the device's on a GPU, else the process's."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb(), 1)
