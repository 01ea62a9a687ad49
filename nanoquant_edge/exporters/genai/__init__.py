# SPDX-License-Identifier: Apache-2.0
"""Folders for ONNX Runtime GenAI."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["export_genai"]

if TYPE_CHECKING:  # what type checkers and editors see
    from .export import export_genai as export_genai
else:

    def __getattr__(name: str) -> Any:
        if name == "export_genai":
            return importlib.import_module(".export", __name__).export_genai
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
