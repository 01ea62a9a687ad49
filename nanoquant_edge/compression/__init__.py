# SPDX-License-Identifier: Apache-2.0
"""NanoQuant compression (PyTorch): calibration, importances, LB-ADMM, block reconstruction, scale distillation."""

from __future__ import annotations

from .options import CompressOptions
from .pipeline import compress, compress_source
from .recipe import PRESETS, Recipe

__all__ = ["PRESETS", "CompressOptions", "Recipe", "compress", "compress_source"]
