# SPDX-License-Identifier: Apache-2.0
"""Bundles with a TensorRT engine: manifest checks, the GPU, contexts, cache and steps. No PyTorch, numpy in and out."""

from __future__ import annotations

from .backend import UNPROVED, TensorRTBackend
from .loading import open_engine

__all__ = ["UNPROVED", "TensorRTBackend", "open_engine"]
