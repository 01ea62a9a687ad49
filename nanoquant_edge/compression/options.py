# SPDX-License-Identifier: Apache-2.0
"""What `compress` may be told, as one frozen object that is checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import NqEdgeError
from ..formats.checkpoint import TABLE_FORMATS
from ..formats.checkpoint.settings import SCALE_DTYPES
from ..models.rates import rank_for_rate
from .calibrate.sources import TextSource
from .execution.device import chosen_device
from .execution.precision import preferred_dtype
from .recipe import Recipe

__all__ = ["CompressOptions"]

_COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: How embedding and head may be stored; "fp16" leaves them as they are.
_EMBEDDINGS = ("fp16", *TABLE_FORMATS)


@dataclass(frozen=True)
class CompressOptions:
    """Everything that a compression may be told beside the model and the output.

    Attributes:
        bpw: target bits per weight of the compressed layers, 0.05 to 8.
        recipe: a preset's name ("quick", "balanced", "full", "official") or a Recipe.
        calibration: where calibration windows are taken from: a file or folder of text, "self" or "self:2M" for text
            of so many tokens that the model writes, each also with =WEIGHT, or several of them; None is "self".
        seed: random seed for the calibration windows, the initial factors and the order of samples.
        device: "auto", "cpu", "cuda" or "cuda:N".
        compute_dtype: "auto", "float32" or "bfloat16", for matrix products while tuning; "auto" takes bfloat16 where
            the processor multiplies it natively.
        scale_dtype: storage type of the scales: "float16", "bfloat16" or "float32".
        embedding: storage of embedding and head: "fp16", "int8" or "int4".
        stream_weights: read each block's weights from the safetensors files when they are needed; None does so where
            the float32 model would take more than half of the free memory.
        allow_pickle: read pickle weights where there are no safetensors; tensors only, no code runs.
        overwrite: replace a checkpoint that stands at the output, and the state of an interrupted run.
        resume: continue an interrupted run for the output, whose state lies beside it; where there is none, a new run
            begins.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of range.

    Example:
        >>> options = CompressOptions(bpw=0.8, recipe="quick", embedding="int4")
        >>> options.schedule.windows
        16
    """

    bpw: float = 1.0
    recipe: str | Recipe = "balanced"
    calibration: str | Path | Sequence[str | Path] | None = None
    seed: int = 0
    device: str = "auto"
    compute_dtype: str = "auto"
    scale_dtype: str = "float16"
    embedding: str = "fp16"
    stream_weights: bool | None = None
    allow_pickle: bool = False
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        rank_for_rate(64, 64, self.bpw)
        _ = self.schedule
        if not 0 <= self.seed < 1 << 63:
            raise NqEdgeError("NQ-OPTION", f"seed must lie between 0 and 2^63 - 1, not {self.seed}.")
        chosen_device(self.device)
        _ = self.sources
        for name, allowed in (
            ("compute_dtype", ("auto", *_COMPUTE_DTYPES)),
            ("scale_dtype", SCALE_DTYPES),
            ("embedding", _EMBEDDINGS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                choices = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise NqEdgeError("NQ-OPTION", f"{name} must be {choices}, not {value!r}.")

    @property
    def schedule(self) -> Recipe:
        """The recipe itself, where a preset's name was given too."""
        return Recipe.preset(self.recipe) if isinstance(self.recipe, str) else self.recipe

    @property
    def sources(self) -> tuple[TextSource, ...]:
        """The sources of calibration text; none where the model writes its own."""
        if self.calibration is None:
            return ()
        named = [self.calibration] if isinstance(self.calibration, (str, Path)) else self.calibration
        return tuple(TextSource.parse(str(name)) for name in named)

    @property
    def calibration_name(self) -> str:
        """What the checkpoint calls its calibration text."""
        return ", ".join(source.path.name for source in self.sources) or "self-generated"

    def changed(self, **changes: Any) -> CompressOptions:
        """These options with some values changed, and checked again."""
        return replace(self, **changes)

    def compute_type(self, device: torch.device) -> torch.dtype:
        """The type of matrix products on a device."""
        return preferred_dtype(device) if self.compute_dtype == "auto" else _COMPUTE_DTYPES[self.compute_dtype]
