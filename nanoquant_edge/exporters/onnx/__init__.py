# SPDX-License-Identifier: Apache-2.0
"""ONNX export: graphs by family and dialect, the operator's schema, and bundles.

Names are loaded when first used: a board that builds from a graph need not have the `onnx` package.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "DIALECTS": "dialects.base",
    "Dialect": "dialects.base",
    "WeightSource": "weights",
    "build_model": "build",
    "check_file": "schema",
    "check_model": "schema",
    "export_onnx": "export",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
