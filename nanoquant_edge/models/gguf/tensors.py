# SPDX-License-Identifier: Apache-2.0
"""The tensors of a GGUF file under the names and in the layout of Hugging Face models."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from ..config import DecoderConfig
from .content import GgufContent
from .layout import halves, parameter_name

__all__ = ["GgufTensors"]

#: Factors of frequencies, which are in the configuration.
_IN_CONFIGURATION = "rope_freqs.weight"


class GgufTensors:
    """Tensors by Hugging Face name (`StoredTensors`); one that no family has keeps its own name.

    Args:
        content: the file.
        decoder: its configuration.
    """

    def __init__(self, content: GgufContent, decoder: DecoderConfig) -> None:
        self._content, self._decoder = content, decoder
        self._stored = {
            parameter_name(name, decoder.structure): name for name in content.tensors if name != _IN_CONFIGURATION
        }

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._content.tensors[self._stored[name]].shape

    def check(self, name: str) -> None:
        """Every block type has been looked at when the file was opened."""

    def read(self, name: str, device: torch.device) -> Tensor:
        """A tensor as float32 on a device, rotary rows in halves and the 1 that Gemma's norms hold taken off."""
        stored = self._stored[name]
        values = self._content.values(stored)
        heads = {"attn_q": self._decoder.num_heads, "attn_k": self._decoder.num_kv_heads}
        part = stored.split(".")[-2] if "." in stored else ""
        if self._content.architecture == "llama" and part in heads:
            values = halves(values, heads[part])
        if self._decoder.structure.norm == "rms_plus_one" and values.ndim == 1 and name.endswith("norm.weight"):
            values = values - 1
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)
