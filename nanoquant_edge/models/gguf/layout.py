# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp names the layers of a block, and in which order it keeps rotary rows."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["LINEARS", "halves"]

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


def halves(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a query or key projection from rotary pairs side by side to first halves, then second halves.

    Raises:
        ValueError: when the rows are not `heads` heads of an even width.

    Example:
        >>> halves(np.array([0, 2, 1, 3]), heads=1)
        array([0, 1, 2, 3])
    """
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
