# SPDX-License-Identifier: Apache-2.0
"""What a compression run does, as one frozen object, and the three presets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import NqEdgeError

__all__ = ["PRESETS", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Settings of the pipeline; defaults are the official ones (method section 11).

    Attributes:
        name: preset this came from.
        windows, window_length: calibration windows and their length in tokens.
        gamma: shrinkage of the importances toward their mean (method section 7).
        admm_steps, admm_schedule, admm_ridge, svid_steps: LB-ADMM (method section 8.2); schedule "linear" or "cubic".
        fp_epochs, fp_lr, fp_batch: TuneFP (method section 8.1).
        ste_epochs, ste_lr, ste_batch: TuneLatentSTE (method section 8.4), learning rate of the latent signs.
        ste_scale_lr: learning rate of the scales and the bias in TuneLatentSTE.
        kd_epochs, kd_lr, kd_batch: scale distillation (method section 9).
        relative_lr: learning rates of weights, latents and scales are multiples of the trained tensor's own root mean
            square instead of absolute numbers. Short schedules need it: an absolute 1e-5 moves nothing in 16 steps.
    """

    name: str = "full"
    windows: int = 128
    window_length: int = 2048
    gamma: float = 0.2
    admm_steps: int = 400
    admm_schedule: str = "linear"
    admm_ridge: float = 0.03
    svid_steps: int = 5
    fp_epochs: int = 8
    fp_lr: float = 1e-4
    fp_batch: int = 4
    ste_epochs: int = 8
    ste_lr: float = 1e-5
    ste_scale_lr: float = 1e-5
    ste_batch: int = 1
    kd_epochs: int = 8
    kd_lr: float = 1e-5
    kd_batch: int = 1
    relative_lr: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("windows", "window_length", "admm_steps", "svid_steps", "fp_batch", "ste_batch", "kd_batch"):
            if getattr(self, name) < 1:
                raise NqEdgeError("NQ-OPTION", f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("fp_epochs", "ste_epochs", "kd_epochs", "fp_lr", "ste_lr", "ste_scale_lr", "kd_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise NqEdgeError("NQ-OPTION", f"{name} must not be negative, not {getattr(self, name)}.")
        if not 0 < self.admm_ridge < math.inf:
            raise NqEdgeError("NQ-OPTION", f"admm_ridge must be above 0, not {self.admm_ridge}.")
        if self.window_length < 8:
            raise NqEdgeError("NQ-OPTION", f"window_length must be at least 8 tokens, not {self.window_length}.")
        if not 0 <= self.gamma <= 1:
            raise NqEdgeError("NQ-OPTION", f"gamma must lie between 0 and 1, not {self.gamma}.")
        if self.admm_schedule not in ("linear", "cubic"):
            raise NqEdgeError("NQ-OPTION", f"admm_schedule must be linear or cubic, not {self.admm_schedule!r}.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A preset by name, with some settings changed.

        Raises:
            NqEdgeError: NQ-OPTION for an unknown preset or setting.
        """
        if name not in PRESETS:
            raise NqEdgeError("NQ-OPTION", f"preset {name!r} is unknown; there are {', '.join(PRESETS)}.")
        unknown = set(changes) - set(cls.__dataclass_fields__)
        if unknown:
            raise NqEdgeError("NQ-OPTION", f"a recipe has no setting {sorted(unknown)[0]!r}.")
        return replace(PRESETS[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON, for the checkpoint's provenance."""
        return asdict(self)


PRESETS: dict[str, Recipe] = {
    # Sized for about five minutes of SmolLM2-135M on two CPU cores; rates screened in docs/figures/quality.json.
    "quick": Recipe(
        name="quick",
        windows=16,
        window_length=256,
        admm_steps=32,
        svid_steps=1,
        fp_epochs=1,
        fp_lr=0.02,
        fp_batch=4,
        ste_epochs=1,
        ste_lr=0.04,
        ste_scale_lr=0.01,
        ste_batch=4,
        kd_epochs=2,
        kd_lr=0.005,
        kd_batch=4,
        relative_lr=True,
    ),
    "balanced": Recipe(
        name="balanced",
        windows=64,
        window_length=1024,
        admm_steps=120,
        svid_steps=2,
        fp_epochs=2,
        fp_lr=0.008,
        fp_batch=4,
        ste_epochs=2,
        ste_lr=0.03,
        ste_scale_lr=0.005,
        ste_batch=4,
        kd_epochs=4,
        kd_lr=0.001,
        kd_batch=2,
        relative_lr=True,
    ),
    "full": Recipe(),
}
