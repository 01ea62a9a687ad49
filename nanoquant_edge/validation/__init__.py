# SPDX-License-Identifier: Apache-2.0
"""Proof that a bundle computes what PyTorch computed. Only `dense` and `reference` import PyTorch, when needed."""

from __future__ import annotations

from .options import ValidationOptions
from .perplexity import backend_perplexity, perplexity
from .report import Report, Step
from .run import validate

__all__ = ["Report", "Step", "ValidationOptions", "backend_perplexity", "perplexity", "validate"]
