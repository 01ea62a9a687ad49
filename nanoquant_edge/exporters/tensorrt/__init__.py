# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: from a checkpoint or an ONNX bundle to an engine bundle, or to a folder that a board builds from.

Names are loaded when first used: a board that compiles a graph need not have `onnx`.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {"BuildPlan": "plan", "EngineOptions": "options", "build_engine": "build"}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
