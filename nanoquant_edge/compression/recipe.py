# SPDX-License-Identifier: Apache-2.0
"""The schedule of a compression run as one frozen object, and the presets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..errors import NqEdgeError
from .factorize.settings import AdmmSettings

__all__ = ["PRESETS", "REDUCED", "Recipe"]

_COUNTS = (
    *("windows", "window_length", "admm_steps", "svid_steps"),
    *("fp_batch", "ste_batch", "kd_batch", "end_to_end_batch"),
)
_RATES = (
    *("fp_epochs", "ste_epochs", "joint_epochs", "kd_epochs", "end_to_end_tokens"),
    *("fp_lr", "ste_lr", "joint_lr", "ste_scale_lr", "kd_lr", "end_to_end_lr", "end_to_end_sign_lr", "rank_depth"),
)


@dataclass(frozen=True)
class Recipe:
    """Settings of the pipeline; defaults are the official ones. Sections are those of docs/METHOD.md; 14 compares all.

    Attributes:
        name: preset this came from.
        windows, window_length: calibration windows and their length in tokens.
        window_choice: "distinct" draws without repetition; "random" as the official code does, at random offsets and
            then with replacement, which repeats 39 % of them; "spread" takes evenly spaced ones off the grid.
        chat_share: share of the windows that hold conversations which the dense model writes in its own chat format
            (`calibrate.conversations`); without effect on a model that has none.
        gamma: shrinkage of the importances toward their mean (section 4). The paper has 0.2 for Llama and Qwen and 0.6
            for Gemma-3, the official code 0.4 for all.
        refresh_inputs: measure the input importances of a block again on the compressed stream (section 4).
        rank_depth: non-uniform ranks at equal bits: bits grow with depth by exp(rank_depth) from the first to the
            last block (section 11).
        rank_sensitivity: shift bits between layers by the error that they are measured to save there
            (section 11).
        rank_divergence: with `rank_sensitivity`, what a layer costs is the divergence of the dense model with that one
            layer factorized (section 11).
        rank_fill: spend the whole rate that was asked for: also what rounding the ranks of equal rates down to words
            leaves, 11 % of the bits of SmolLM2-135M at 0.55 bits per weight (section 11).
        admm_steps, admm_ridge, svid_steps: LB-ADMM (section 5).
        admm_unit_size: LB-ADMM brings its target to unit size first, which the official code does not.
        curvature: LB-ADMM under dense curvature factors instead of diagonal importances (section 10); those of the
            inputs are measured on the compressed stream, as with `refresh_inputs`.
        fp_epochs, fp_lr, fp_batch: TuneFP (section 6).
        ste_epochs, ste_lr, ste_batch: TuneLatentSTE (section 7), learning rate of the latent signs.
        ste_scale_lr: learning rate of the scales and the bias in TuneLatentSTE.
        joint_epochs, joint_lr: TuneLatentSTE of all layers of a block at once after its last layer's own (section 7),
            and the learning rate of the latents there; 0 epochs leave it out.
        kd_epochs, kd_lr, kd_batch: scale distillation (section 9).
        end_to_end_tokens, end_to_end_lr, end_to_end_batch: tuning of all scales on that many tokens of fresh text
            (section 9), learning rate relative to each scale vector's root mean square; 0 tokens leave it out.
        end_to_end_chat_share: share of those windows that hold conversations.
        end_to_end_sign_lr: learning rate of the signs there, which flip once their latents have moved by 1; 0 keeps
            them all.
        end_to_end_mid: give every layer a scale for each rank there, which begins as 1.
        relative_lr: learning rates of weights, latents and scales are multiples of the trained tensor's own root mean
            square instead of absolute numbers. Short schedules need it: an absolute 1e-5 moves nothing in 16 steps.
    """

    name: str = "official"
    windows: int = 128
    window_length: int = 2048
    window_choice: str = "random"
    chat_share: float = 0.0
    gamma: float = 0.2
    refresh_inputs: bool = False
    rank_depth: float = 0.0
    rank_sensitivity: bool = False
    rank_divergence: bool = False
    rank_fill: bool = False
    admm_steps: int = 400
    admm_ridge: float = 0.03
    svid_steps: int = 5
    admm_unit_size: bool = False
    curvature: bool = False
    fp_epochs: int = 8
    fp_lr: float = 1e-4
    fp_batch: int = 4
    ste_epochs: int = 8
    ste_lr: float = 1e-5
    ste_scale_lr: float = 1e-5
    ste_batch: int = 1
    joint_epochs: int = 0
    joint_lr: float = 0.004
    kd_epochs: int = 8
    kd_lr: float = 1e-5
    kd_batch: int = 1
    end_to_end_tokens: int = 0
    end_to_end_lr: float = 0.01
    end_to_end_batch: int = 8
    end_to_end_chat_share: float = 0.1
    end_to_end_sign_lr: float = 0.0
    end_to_end_mid: bool = False
    relative_lr: bool = False
    version: int = 5

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise NqEdgeError("NQ-OPTION", f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in _RATES:
            if not 0 <= getattr(self, name) < math.inf:
                raise NqEdgeError("NQ-OPTION", f"{name} must not be negative, not {getattr(self, name)}.")
        if not 0 < self.admm_ridge < math.inf:
            raise NqEdgeError("NQ-OPTION", f"admm_ridge must be above 0, not {self.admm_ridge}.")
        if self.window_length < 8:
            raise NqEdgeError("NQ-OPTION", f"window_length must be at least 8 tokens, not {self.window_length}.")
        for name in ("gamma", "chat_share", "end_to_end_chat_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise NqEdgeError("NQ-OPTION", f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        if self.window_choice not in ("distinct", "random", "spread"):
            raise NqEdgeError(
                "NQ-OPTION", f"window_choice must be distinct, random or spread, not {self.window_choice!r}."
            )

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

    def admm(self, dtype: torch.dtype) -> AdmmSettings:
        """The settings of LB-ADMM, with the type of its products."""
        return AdmmSettings(
            steps=self.admm_steps,
            ridge=self.admm_ridge,
            svid_steps=self.svid_steps,
            dtype=dtype,
            unit_size=self.admm_unit_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON, for the checkpoint's provenance."""
        return asdict(self)


#: What the default recipe does otherwise than the official code, whatever the schedule.
_DEFAULT: dict[str, Any] = {
    "chat_share": 0.5,
    "window_choice": "distinct",
    "refresh_inputs": True,
    "curvature": True,
    "rank_depth": 0.6,
    "rank_sensitivity": True,
    "rank_fill": True,
    "admm_unit_size": True,
    "svid_steps": 1,
    "relative_lr": True,
}

#: The short schedule on which recipes are compared (docs/METHOD.md, section 14): 64 sequences a stage and layer for
#: both. The default recipe spends them on twice the windows, once each.
REDUCED: dict[str, dict[str, Any]] = {
    "official": {
        "windows": 32,
        "window_choice": "spread",
        "fp_epochs": 2,
        "ste_epochs": 2,
        "kd_epochs": 2,
    },
    "default": {
        "windows": 64,
        "fp_epochs": 1,
        "ste_epochs": 1,
        "kd_epochs": 1,
        "fp_lr": 0.01,
        "ste_lr": 0.03,
        "ste_scale_lr": 0.005,
        "kd_lr": 0.002,
    },
}

#: The default recipe on the paper's schedule.
_FULL: dict[str, Any] = {"fp_lr": 0.004, "ste_lr": 0.008, "ste_scale_lr": 0.002, "kd_lr": 0.0005, **_DEFAULT}

PRESETS: dict[str, Recipe] = {
    # Sized for about five minutes of SmolLM2-135M on two CPU cores; rates screened in docs/figures/quality_quick.json.
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
        window_choice="distinct",
        chat_share=0.5,
        admm_unit_size=True,
        relative_lr=True,
    ),
    # The default recipe on the reduced schedule: what docs/QUALITY.md calls `default`.
    "balanced": Recipe(name="balanced", **{**_DEFAULT, **REDUCED["default"]}),
    "full": Recipe(name="full", **_FULL),
    # As many sequences a stage as `full`, from four times as many windows.
    "max": Recipe(
        name="max",
        **{**_FULL, "ste_lr": 0.004},
        windows=512,
        fp_epochs=2,
        ste_epochs=2,
        kd_epochs=2,
        end_to_end_tokens=10_000_000,
        end_to_end_lr=0.005,
    ),
    "official": Recipe(),
}
