# SPDX-License-Identifier: Apache-2.0
"""Which program made a report, and with which packages."""

from __future__ import annotations

import platform
from datetime import date
from importlib import metadata

from .page import Table

__all__ = ["footer", "versions_table"]

_PACKAGES = (
    "nanoquant-edge",
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
    "transformers",
)


def versions_table() -> Table:
    """The versions of the packages that compute or compare, as far as they are installed."""
    rows = [("Python", platform.python_version()), ("system", f"{platform.system()} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return Table(("package", "version"), rows)


def footer() -> str:
    """The line at the end of a page."""
    try:
        version = metadata.version("nanoquant-edge")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"Made by nanoquant-edge {version} on {date.today().isoformat()}. This file needs nothing from the network."
