# SPDX-License-Identifier: Apache-2.0
"""Our operators' nodes, compared with docs/OPERATOR.md."""

from __future__ import annotations

from .model import check_file, check_model, load_model

__all__ = ["check_file", "check_model", "load_model"]
