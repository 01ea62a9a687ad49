# SPDX-License-Identifier: Apache-2.0
"""GPUs and boards by name, and whether a model fits them. Nothing here needs a GPU, numpy or PyTorch."""

from __future__ import annotations

from .fit import Fit, ModelSizes, check_fit, check_host, fit_capacity
from .targets import TARGETS, Target, target_named

__all__ = ["TARGETS", "Fit", "ModelSizes", "Target", "check_fit", "check_host", "fit_capacity", "target_named"]
