# SPDX-License-Identifier: Apache-2.0
"""ONNX export: graphs by family and dialect, the operator's schema, and bundles.

Names are loaded when first used: `extra_outputs` must be importable on a board that has no `onnx` package.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "DIALECTS": "dialects",
    "Dialect": "dialects",
    "WeightSource": "weights",
    "build_model": "build",
    "check_file": "schema",
    "check_model": "schema",
    "export_onnx": "export",
    "with_extra_outputs": "extra_outputs",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
