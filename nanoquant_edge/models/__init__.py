# SPDX-License-Identifier: Apache-2.0
"""Architectures, their configuration, and reading models. Only `loading` and `linear` import PyTorch."""

from __future__ import annotations

from .config import DecoderConfig, RotaryConfig
from .families import FAMILIES, Family, family_named, family_of

__all__ = ["FAMILIES", "DecoderConfig", "Family", "RotaryConfig", "family_named", "family_of"]
