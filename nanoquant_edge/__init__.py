# SPDX-License-Identifier: Apache-2.0
"""nanoquant-edge: compress language models with NanoQuant, export, run and validate them on edge devices.

Everything public is reachable from here and imported only when first used, so that a board never loads PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

#: public name -> the module that defines it
_PUBLIC = {
    "NqEdgeError": "errors",
    "compress": "compression",
    "export_onnx": "exporters.onnx",
    "build_engine": "exporters.tensorrt",
    "validate": "validation",
    "Generator": "runtimes",
    "Checkpoint": "formats.checkpoint",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nanoquant-edge")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
