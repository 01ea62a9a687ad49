# SPDX-License-Identifier: Apache-2.0
"""ONNX export: graphs by family and dialect, the operator's schema, and bundles.

Names are loaded when first used: a board that builds from a graph need not have the `onnx` package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "DIALECTS",
    "Dialect",
    "ExportOptions",
    "GraphOptions",
    "WeightSource",
    "build_model",
    "check_file",
    "check_model",
    "export_onnx",
]

if TYPE_CHECKING:  # what type checkers and editors see
    from ...formats.graph import DIALECTS as DIALECTS
    from ..options import ExportOptions as ExportOptions
    from ..options import GraphOptions as GraphOptions
    from ..schema import check_file as check_file
    from ..schema import check_model as check_model
    from ..weights import WeightSource as WeightSource
    from .build import build_model as build_model
    from .dialects.base import Dialect as Dialect
    from .export import export_onnx as export_onnx
else:
    #: public name -> the module that defines it
    _PUBLIC = {
        "DIALECTS": "...formats.graph",
        "Dialect": ".dialects.base",
        "ExportOptions": "..options",
        "GraphOptions": "..options",
        "WeightSource": "..weights",
        "build_model": ".build",
        "check_file": "..schema",
        "check_model": "..schema",
        "export_onnx": ".export",
    }

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
