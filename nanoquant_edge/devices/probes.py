# SPDX-License-Identifier: Apache-2.0
"""How the doctor looks at a machine: packages, programs, native libraries, sensors."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from ..system import native
from ..system.memory import memory_available
from .power import PowerSource, find_sources

__all__ = ["Probes"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _module_version(name: str) -> str | None:
    try:
        return str(import_module(name).__version__)
    except Exception:  # a TensorRT without its libraries raises OSError, one for another Python ImportError
        return None


def _requirements() -> list[str] | None:
    try:
        return metadata.requires("nanoquant-edge") or []
    except metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    found: list[str] = import_module("onnxruntime").get_available_providers()
    return found


def _register() -> None:
    options = import_module("onnxruntime").SessionOptions()
    options.register_custom_ops_library(str(native.ort_library_path()))


@dataclass(frozen=True)
class Probes:
    """One function for each question; tests answer some of them otherwise.

    Attributes:
        version: version of an installed distribution; None where it is not installed.
        module_version: `__version__` of a module; None where it cannot be imported.
        requirements: what this package's metadata require; None where it runs without being installed.
        providers: names of ONNX Runtime's execution providers.
        register: makes ONNX Runtime load the operator's library; raises where it cannot.
        operator_library, cuda_library, tensorrt_library: what our native libraries say of themselves.
        program: path of a program; None where there is none.
        free_memory: bytes; None where the system does not tell.
        power: power sensors, and why others are absent.
        python: version of Python.
    """

    version: Callable[[str], str | None] = _version
    module_version: Callable[[str], str | None] = _module_version
    requirements: Callable[[], list[str] | None] = _requirements
    providers: Callable[[], list[str]] = _providers
    register: Callable[[], None] = _register
    operator_library: Callable[[], dict[str, Any]] = native.ort_library_info
    cuda_library: Callable[[], dict[str, Any]] = native.cuda_library_info
    tensorrt_library: Callable[[], dict[str, Any]] = native.tensorrt_library_info
    program: Callable[[str], str | None] = shutil.which
    free_memory: Callable[[], int | None] = memory_available
    power: Callable[[], tuple[list[PowerSource], dict[str, str]]] = find_sources
    python: tuple[int, ...] = tuple(sys.version_info[:3])
