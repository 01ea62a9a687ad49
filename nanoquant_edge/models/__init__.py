# SPDX-License-Identifier: Apache-2.0
"""Architectures and their configuration; models read from folders, GGUF files and the hub as PyTorch models.

What a board needs of it (`config`, `config_reader`, `families`, `rotary`, `rates`) imports no PyTorch.
`model_tokenizer` reads the one tokenizer that calibration, validation and prompts use.
"""

from __future__ import annotations

from .config import DecoderConfig, RotaryConfig
from .families import FAMILIES, Family, family_named, family_of

__all__ = ["FAMILIES", "DecoderConfig", "Family", "RotaryConfig", "family_named", "family_of"]
