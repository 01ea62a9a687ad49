# SPDX-License-Identifier: Apache-2.0
"""What a user may choose about an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import NqEdgeError

__all__ = ["DEBUG_CHOICES", "PRECISIONS", "USUAL_CAPACITY", "EngineOptions"]

PRECISIONS = ("float16", "bfloat16")
#: Inner values that an engine can return: outputs of decoder blocks, and of every compressed layer too.
DEBUG_CHOICES = ("blocks", "layers")
#: Cache slots when nothing is asked for: attention masks unused slots, it does not skip them.
USUAL_CAPACITY = 2048
_LARGEST_BATCH = 256


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine.

    Attributes:
        dtype: type of activations and cache, "float16" or "bfloat16".
        capacity: cache slots; None takes 2048 or what fits the target; 0 takes all that fits.
        batch: most sequences that decode together.
        prefill: most tokens of a prompt that pass through at once.
        positions: most rows of logits that one pass returns.
        grouped: one plugin layer for projections that share an input.
        refit: weights can be exchanged later. TensorRT for RTX does that on the GPU it builds for only.
        version_compatible: newer TensorRT of the same major version may load it; standard TensorRT only.
        embed_plugin: put the plugin library into the engine; loading it then runs code of the file.
        debug_outputs: "blocks" or "layers" to return inner values too, "" for none.
        library: the plugin; None takes the installed one.
        timing_cache: file that keeps measured kernel times from build to build; standard TensorRT only.
        optimization_level: TensorRT's 0 to 5; None leaves it.
        workspace_mb: most scratch memory of TensorRT's own kernels; None leaves it.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of range.

    Example:
        >>> EngineOptions(dtype="bfloat16", capacity=4096).batch
        1
    """

    dtype: str = "float16"
    capacity: int | None = None
    batch: int = 1
    prefill: int = 512
    positions: int = 16
    grouped: bool = True
    refit: bool = False
    version_compatible: bool = False
    embed_plugin: bool = False
    debug_outputs: str = ""
    library: str | Path | None = None
    timing_cache: Path | None = None
    optimization_level: int | None = None
    workspace_mb: int | None = None

    def __post_init__(self) -> None:
        def need(good: bool, name: str, allowed: str) -> None:
            if not good:
                raise NqEdgeError("NQ-OPTION", f"{name} {getattr(self, name)!r} is not {allowed}.")

        need(self.dtype in PRECISIONS, "dtype", "float16 or bfloat16, which the plugin computes in")
        need(self.capacity is None or self.capacity >= 0, "capacity", "0 or more")
        need(1 <= self.batch <= _LARGEST_BATCH, "batch", f"between 1 and {_LARGEST_BATCH}")
        need(1 <= self.prefill <= 1 << 20, "prefill", "between 1 and 1048576")
        need(1 <= self.positions <= 1 << 20, "positions", "between 1 and 1048576")
        need(self.debug_outputs in ("", *DEBUG_CHOICES), "debug_outputs", "blocks or layers")
        need(self.optimization_level in (None, 0, 1, 2, 3, 4, 5), "optimization_level", "between 0 and 5")
        need(self.workspace_mb is None or self.workspace_mb >= 1, "workspace_mb", "1 or more")
