# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp names the layers of a block, and in which order it keeps rotary rows."""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from ..families import Family

__all__ = ["LINEARS", "halves", "parameter_name"]

#: Linear of a GGUF block -> module inside a block (llama.cpp's tensor names).
LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)")


def halves(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a query or key projection from rotary pairs side by side to first halves, then second halves.

    Raises:
        ValueError: when the rows are not `heads` heads of an even width.

    Example:
        >>> import numpy as np
        >>> halves(np.array([0, 2, 1, 3]), heads=1)
        array([0, 1, 2, 3])
    """
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def parameter_name(name: str, family: Family) -> str:
    """The Hugging Face name of a tensor; its own name where the family has no such tensor.

    Example:
        >>> from nanoquant_edge.models import family_named
        >>> parameter_name("blk.3.ffn_norm.weight", family_named("llama"))
        'model.layers.3.post_attention_layernorm.weight'
    """
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
