# SPDX-License-Identifier: Apache-2.0
"""GPUs and boards by name, whether a model fits them and how fast it will be. Nothing here needs a GPU or PyTorch."""

from __future__ import annotations

from .assess import Assessment, assess
from .fit import Fit, ModelSizes, check_fit, check_host, fit_capacity
from .forecast import Forecast, forecast
from .model import ModelFacts, open_model
from .recognise import describe_machine, recognise, this_target
from .targets import TARGETS, Target, target_named

__all__ = [
    "TARGETS",
    "Assessment",
    "Fit",
    "Forecast",
    "ModelFacts",
    "ModelSizes",
    "Target",
    "assess",
    "check_fit",
    "check_host",
    "describe_machine",
    "fit_capacity",
    "forecast",
    "open_model",
    "recognise",
    "target_named",
    "this_target",
]
