# SPDX-License-Identifier: Apache-2.0
"""nanoquant-edge: compress language models with NanoQuant, export, run and validate them on edge devices.

Everything public is reachable from here and imported only when first used, so that a board never loads PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Checkpoint",
    "CompressOptions",
    "Generation",
    "Generator",
    "NqEdgeError",
    "OpenOptions",
    "SamplingConfig",
    "ValidationOptions",
    "__version__",
    "build_engine",
    "compress",
    "export_onnx",
    "validate",
]

if TYPE_CHECKING:  # what type checkers and editors see
    from .compression import CompressOptions as CompressOptions
    from .compression import compress as compress
    from .errors import NqEdgeError as NqEdgeError
    from .exporters.onnx import export_onnx as export_onnx
    from .exporters.tensorrt import build_engine as build_engine
    from .formats.checkpoint import Checkpoint as Checkpoint
    from .runtimes import Generation as Generation
    from .runtimes import Generator as Generator
    from .runtimes import OpenOptions as OpenOptions
    from .runtimes import SamplingConfig as SamplingConfig
    from .validation import ValidationOptions as ValidationOptions
    from .validation import validate as validate

    __version__: str
else:
    #: public name -> the module that defines it
    _PUBLIC = {
        "Checkpoint": "formats.checkpoint",
        "CompressOptions": "compression",
        "Generation": "runtimes",
        "Generator": "runtimes",
        "NqEdgeError": "errors",
        "OpenOptions": "runtimes",
        "SamplingConfig": "runtimes",
        "ValidationOptions": "validation",
        "build_engine": "exporters.tensorrt",
        "compress": "compression",
        "export_onnx": "exporters.onnx",
        "validate": "validation",
    }

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("nanoquant-edge")
        if name in _PUBLIC:
            return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)
