# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: from a checkpoint or an ONNX bundle to an engine bundle, or to a folder that a board builds from.

Names are loaded when first used: a board that compiles a graph need not have `onnx`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["BuildPlan", "EngineOptions", "build_engine"]

if TYPE_CHECKING:  # what type checkers and editors see
    from .build import build_engine as build_engine
    from .options import EngineOptions as EngineOptions
    from .plan import BuildPlan as BuildPlan
else:
    #: public name -> the module that defines it
    _PUBLIC = {"BuildPlan": "plan", "EngineOptions": "options", "build_engine": "build"}

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
