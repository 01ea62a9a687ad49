# SPDX-License-Identifier: Apache-2.0
"""Proof that a bundle computes what PyTorch computed. Only `dense` and `reference` import PyTorch."""

from __future__ import annotations
