# SPDX-License-Identifier: Apache-2.0
"""Does a model fit a device, and does its build fit this machine? Estimates, with every part shown.

Weights and cache are exact. Activations are an upper bound from the shapes of one prefill piece. What TensorRT and the
system take (`Target.reserved_gb`, `HOST_BYTES`) are stated constants: the host's were measured (docs/TENSORRT.md).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..models import DecoderConfig
from ..system.memory import memory_available
from .profile import Target

__all__ = [
    "HOST_BYTES",
    "SLOTS",
    "Fit",
    "ModelSizes",
    "check_fit",
    "check_host",
    "fit_capacity",
    "largest_capacity",
]

#: Host memory of a build besides the weights: the builder's libraries, and the code of its kernels.
HOST_BYTES = 1 << 30
#: Host memory of a build for each byte of weights.
HOST_SHARE = 1.5
#: Disk space of a build for each byte of weights: the graph and the engine, and some room.
_DISK_SHARE = 2.25
#: An engine without its weights, for each decoder block: 1.1 MB were measured with two profiles, whatever the number of
#: architectures (docs/figures/engine_build.json).
_CODE_BYTES = 1_250_000
#: Capacities are multiples of this many cache slots.
SLOTS = 64
_SMALLEST_CAPACITY = 256


@dataclass(frozen=True)
class ModelSizes:
    """What the memory of an engine depends on.

    Attributes:
        weights: bytes of all initializers of its graph.
        layers, kv_heads, head_dim, heads, hidden, intermediate, vocabulary: sizes of the decoder.
        batch: sequences at once.
        prefill: tokens of a prompt that pass through at once.
        positions: rows of logits at once.
        item: bytes of an activation.
        max_positions: longest context of the model.
        in_place: attention reads the cache where it lies; otherwise scores are materialized in float32.
        engine: TensorRT runs it, whose engines hold code besides the weights.
    """

    weights: int
    layers: int
    kv_heads: int
    head_dim: int
    heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    batch: int
    prefill: int
    positions: int
    item: int
    max_positions: int
    in_place: bool
    engine: bool = True

    @classmethod
    def of(cls, config: DecoderConfig, **others: Any) -> ModelSizes:
        """With the decoder's own sizes from its configuration, and the other attributes as given."""
        return cls(
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            heads=config.num_heads,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            **others,
        )

    @property
    def code(self) -> int:
        """Bytes of an engine besides its weights."""
        return self.code_of(self.layers) if self.engine else 0

    @staticmethod
    def code_of(layers: int) -> int:
        """Bytes of an engine with so many decoder blocks, besides its weights."""
        return layers * _CODE_BYTES

    def cache(self, capacity: int) -> int:
        """Bytes of the key/value cache."""
        return 2 * self.layers * self.batch * self.kv_heads * capacity * self.head_dim * self.item

    def activations(self, capacity: int) -> int:
        """Bytes that a prefill piece takes at most, logits and the kernels' workspace included."""
        rows = max(self.prefill, self.batch)
        width = 4 * self.hidden + 3 * self.intermediate + 3 * (self.heads + 2 * self.kv_heads) * self.head_dim
        workspace = 4 * rows * (self.hidden + 2 * max(self.hidden, self.intermediate))
        scores = 0 if self.in_place else self.heads * rows * (capacity + rows) * (2 * 4 + self.item)
        logits = max(self.positions, self.batch) * self.vocabulary * (4 + self.item)
        return rows * width * self.item + workspace + scores + logits


@dataclass(frozen=True)
class Fit:
    """Memory that an engine needs on a device.

    Attributes:
        target: the device.
        capacity: cache slots.
        parts: what takes memory -> bytes.
        available: bytes for the model; None when the device's memory is not known.
    """

    target: Target
    capacity: int
    parts: dict[str, int]
    available: int | None

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it fits, as far as that is known."""
        return self.available is None or self.needed <= self.available

    def to_dict(self) -> dict[str, object]:
        """For reports."""
        return {
            "target": self.target.name,
            "capacity": self.capacity,
            "parts": self.parts,
            "needed": self.needed,
            "available": self.available,
            "reserved": int(self.target.reserved_gb * (1 << 30)),
        }


def check_fit(target: Target, sizes: ModelSizes, *, capacity: int, extra: dict[str, int] | None = None) -> Fit:
    """Memory needed and available at one capacity; `extra` names further parts and their bytes."""
    parts = {
        "weights": sizes.weights,
        "engine code": sizes.code,
        "key/value cache": sizes.cache(capacity),
        "activations": sizes.activations(capacity),
        **(extra or {}),
    }
    if not sizes.engine:
        del parts["engine code"]
    return Fit(target, capacity, parts, target.memory_bytes)


def fit_capacity(targets: list[Target], sizes: ModelSizes, *, wanted: int | None, usual: int) -> list[Fit]:
    """Choose the number of cache slots, the same for all targets.

    Args:
        targets: devices that the engine serves.
        sizes: what the memory of the engine depends on.
        wanted: slots asked for; None takes `usual`, or what fits if that is less; 0 takes all that fits.
        usual: slots when nothing is asked for.

    Returns:
        One `Fit` a target.

    Raises:
        NqEdgeError: NQ-OPTION for a capacity beyond the model's context, NQ-FIT with the figures and what would fit.
    """
    if wanted is not None and (wanted < 0 or wanted > sizes.max_positions):
        raise NqEdgeError(
            "NQ-OPTION", f"capacity {wanted} is not between 1 and the model's {sizes.max_positions} positions."
        )
    limit = sizes.max_positions if wanted == 0 else min(usual, sizes.max_positions)
    largest = min(largest_capacity(target, sizes, limit=wanted or limit) for target in targets)
    if wanted and largest < wanted:
        worst = _worst(targets, sizes, wanted)
        raise NqEdgeError("NQ-FIT", f"{_figures(worst)}.", _advice(worst, sizes, largest))
    if not wanted and largest < min(_SMALLEST_CAPACITY, limit):
        worst = _worst(targets, sizes, min(_SMALLEST_CAPACITY, limit))
        raise NqEdgeError("NQ-FIT", f"{_figures(worst)}.", _advice(worst, sizes, 0))
    return [check_fit(target, sizes, capacity=largest) for target in targets]


def largest_capacity(target: Target, sizes: ModelSizes, *, limit: int, extra: dict[str, int] | None = None) -> int:
    """Most slots up to `limit` that fit, `limit` itself or a multiple of SLOTS; 0 when not even SLOTS fit."""
    if check_fit(target, sizes, capacity=limit, extra=extra).fits:
        return limit
    low, high = 0, -(-limit // SLOTS)
    while low + 1 < high:
        middle = (low + high) // 2
        if check_fit(target, sizes, capacity=middle * SLOTS, extra=extra).fits:
            low = middle
        else:
            high = middle
    return low * SLOTS


def _worst(targets: list[Target], sizes: ModelSizes, capacity: int) -> Fit:
    return max(
        (check_fit(target, sizes, capacity=capacity) for target in targets),
        key=lambda fit: fit.needed - (fit.available or 1 << 60),
    )


def _figures(fit: Fit) -> str:
    parts = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in fit.parts.items())
    return (
        f"{fit.target.title} has {(fit.available or 0) / 1e6:.0f} MB for a model (of {fit.target.memory_gb} GB, "
        f"{fit.target.reserved_gb} GB are set aside), the engine needs {fit.needed / 1e6:.0f} MB at capacity "
        f"{fit.capacity}: {parts}"
    )


def _advice(fit: Fit, sizes: ModelSizes, largest: int) -> str:
    steps = [f"--capacity {largest}"] if largest >= SLOTS else []
    if sizes.batch > 1:
        steps.append("a smaller --batch")
    if sizes.prefill > 128:
        steps.append("a smaller --prefill")
    steps.append("a target with more memory")
    if not largest:
        steps.append("fewer bits per weight or a smaller model")
    return f"Use {', or '.join(steps)}."


def check_host(
    weights: int,
    code: int,
    *,
    folder: Path,
    builds: bool = True,
    available: int | None = None,
    free: int | None = None,
) -> dict[str, int]:
    """Refuse a build that this machine has no memory or disk space for.

    Args:
        weights: bytes of the graph's initializers.
        code: bytes of the engine besides them.
        folder: folder that is written; its nearest existing parent is looked at.
        builds: an engine is built here; otherwise only a graph is written.
        available: bytes of free host memory; None asks the system.
        free: bytes of free disk space; None asks the system.

    Returns:
        memory_needed, memory_available, disk_needed, disk_free in bytes (-1 where not known).

    Raises:
        NqEdgeError: NQ-FIT with the figures.
    """
    above = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    memory = int(HOST_SHARE * weights) + HOST_BYTES if builds else 256 << 20
    disk = int(_DISK_SHARE * weights) + code + (16 << 20) if builds else int(1.2 * weights) + (16 << 20)
    found = memory_available() if available is None else available
    space = shutil.disk_usage(above).free if free is None else free
    if found is not None and memory > found:
        raise NqEdgeError(
            "NQ-FIT",
            f"building needs about {memory / 1e6:.0f} MB of this machine's memory, {found / 1e6:.0f} MB are free.",
            "End other programs, add swap space, or build on a machine with more memory.",
        )
    if disk > space:
        raise NqEdgeError(
            "NQ-FIT",
            f"writing to {above} needs about {disk / 1e6:.0f} MB, {space / 1e6:.0f} MB are free there.",
            "Free some space, or choose another --output.",
        )
    return {
        "memory_needed": memory,
        "memory_available": -1 if found is None else found,
        "disk_needed": disk,
        "disk_free": space,
    }
