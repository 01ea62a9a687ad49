# SPDX-License-Identifier: Apache-2.0
"""Proof that a bundle computes what PyTorch computed. Only `dense` and `reference` import PyTorch, when needed."""

from __future__ import annotations

from .perplexity import backend_perplexity, perplexity
from .report import Report, Rung
from .run import validate

__all__ = ["Report", "Rung", "backend_perplexity", "perplexity", "validate"]
