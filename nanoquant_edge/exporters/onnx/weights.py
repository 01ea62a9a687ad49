# SPDX-License-Identifier: Apache-2.0
"""What a graph builder asks of its weights, and the check that they fit the configuration.

A `Checkpoint` is a weight source; anything else with these three methods builds the same graph.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...checkpoint import PackedLayer
from ...errors import NqEdgeError
from ...models import FAMILIES, DecoderConfig

__all__ = ["EMBEDDING", "FINAL_NORM", "HEAD", "WeightSource", "check_weights"]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


class WeightSource(Protocol):
    """Named weights of one model."""

    def layer(self, name: str) -> PackedLayer:
        """Factors of the compressed linear layer with this module path."""
        ...

    def tensor(self, name: str) -> NDArray[np.generic]:
        """Any other tensor, by its Hugging Face name."""
        ...

    def tensor_names(self) -> list[str]:
        """Names of all tensors, those of compressed layers included (`….u_packed`)."""
        ...


def check_weights(config: DecoderConfig, weights: WeightSource) -> None:
    """Compare every shape with the configuration before anything is built.

    Raises:
        NqEdgeError: NQ-CKPT naming the first tensor that is missing or has another shape.
    """
    hidden, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    family = next(family for family in FAMILIES if family.name == config.family)
    names = set(weights.tensor_names())
    for name in family.layer_names(config.num_layers):
        if f"{name}.u_packed" not in names:
            raise NqEdgeError("NQ-CKPT", f"layer {name} is not in the checkpoint.")
        layer = weights.layer(name)
        expected = linears[name.split(".", 3)[3]]
        if (layer.out_features, layer.in_features) != expected:
            found = (layer.out_features, layer.in_features)
            raise NqEdgeError("NQ-CKPT", f"layer {name} is {found}, the configuration says {expected}.")
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not config.tied:
        shapes[HEAD] = (config.vocab_size, hidden)
    for block in range(config.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{family.blocks}.{block}.{norm}.weight"] = (hidden,)
    for name, shape in shapes.items():
        if name not in names:
            raise NqEdgeError("NQ-CKPT", f"the checkpoint has no tensor {name}.")
        if weights.tensor(name).shape != shape:
            raise NqEdgeError("NQ-CKPT", f"{name} has shape {weights.tensor(name).shape}, not {shape}.")
