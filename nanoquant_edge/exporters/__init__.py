# SPDX-License-Identifier: Apache-2.0
"""Checkpoints to what a device runs. Nothing here imports PyTorch or the compression."""

from __future__ import annotations

__all__: list[str] = []
