# SPDX-License-Identifier: Apache-2.0
"""The TensorRT that builds engines on this machine, if there is one."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.backends import FLAVOURS
from ...system.progress import Progress
from ...system.versions import release
from .runner import COMPILER, run_compiler

__all__ = ["Toolchain"]

#: First standard TensorRT whose parser takes the operators of dialect onnx24.
_ATTENTION_VERSION = (10, 15)


@dataclass(frozen=True)
class Toolchain:
    """What compiles graphs; the defaults are what is installed.

    Attributes:
        flavours: kinds of TensorRT that are here; None looks for their modules.
        command: program that reads a request and writes an engine, see `compile`.
        dialect: of the graphs that it takes; None asks its version.
    """

    flavours: tuple[str, ...] | None = None
    command: tuple[str, ...] = COMPILER
    dialect: str | None = None

    def has(self, flavour: str) -> bool:
        """Whether the TensorRT of this flavour is installed here."""
        if self.flavours is not None:
            return flavour in self.flavours
        try:
            return importlib.util.find_spec(FLAVOURS[flavour].module) is not None
        except (ImportError, ValueError):
            return False

    def dialect_of(self, flavour: str) -> str:
        """The newest dialect that the TensorRT of a flavour takes; for one that is not here, the oldest."""
        if self.dialect is not None:
            return self.dialect
        if flavour == "rtx":
            return "onnx24"
        if not self.has(flavour):
            return "trt103"
        version = str(importlib.import_module(FLAVOURS[flavour].module).__version__)
        return "onnx24" if release(version) >= _ATTENTION_VERSION else "trt103"

    def compile(
        self, folder: Path, output: Path, *, library: Path, timing_cache: Path | None, progress: Progress
    ) -> dict[str, Any]:
        """Compile the graph of a folder; see `run_compiler`."""
        return run_compiler(
            folder, output, library=library, timing_cache=timing_cache, progress=progress, command=self.command
        )
