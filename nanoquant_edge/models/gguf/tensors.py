# SPDX-License-Identifier: Apache-2.0
"""The tensors of a GGUF file under the names and in the layout of Hugging Face models."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from ..config import DecoderConfig
from ..families import Family
from .content import GgufContent
from .layout import LINEARS, halves

__all__ = ["GgufTensors"]

_NAME = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)")
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
            _parameter(name, decoder.structure): name for name in content.tensors if name != _IN_CONFIGURATION
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


def _parameter(name: str, family: Family) -> str:
    whole = {
        "token_embd.weight": f"{family.embedding}.weight",
        "output_norm.weight": f"{family.final_norm}.weight",
        "output.weight": "lm_head.weight",
    }
    match = _NAME.fullmatch(name)
    if match is None:
        return whole.get(name, name)
    norms = {
        "attn_norm": family.attention_norm,
        "ffn_norm": family.feed_norm,
        "post_attention_norm": family.attention_out_norm,
        "post_ffw_norm": family.feed_out_norm,
        "attn_q_norm": "self_attn.q_norm" if family.head_norms else "",
        "attn_k_norm": "self_attn.k_norm" if family.head_norms else "",
    }
    module = LINEARS.get(match[2]) or norms.get(match[2])
    return f"{family.blocks}.{match[1]}.{module}.{match[3]}" if module else name
