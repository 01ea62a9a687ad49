# SPDX-License-Identifier: Apache-2.0
"""NanoQuant compression (PyTorch): calibration, importances, LB-ADMM, block reconstruction, scale distillation."""

from __future__ import annotations

from .options import PRESETS, Recipe
from .pipeline import compress, compress_source

__all__ = ["PRESETS", "Recipe", "compress", "compress_source"]
