# SPDX-License-Identifier: Apache-2.0
"""The contract of an exported decoder graph: names of its inputs, outputs and inner values, and of our operators.

Exporters write these names, runtimes bind memory to them, validation and measurements look for them (docs/FORMAT.md,
docs/OPERATOR.md). Shapes of the values are in `exporters.onnx.build_model`.
"""

from __future__ import annotations

__all__ = [
    "ATTENTION_MASK",
    "ATTENTION_OP",
    "DATA_FILE",
    "DOMAIN",
    "EMBEDDING_OP",
    "GROUP_OP",
    "HEAD_OP",
    "INPUT_IDS",
    "LINEAR_OP",
    "LOGITS",
    "LOGITS_INDICES",
    "MODEL_FILE",
    "OPERATORS",
    "OPERATOR_VERSION",
    "PAST",
    "PRESENT",
    "TOKEN_INPUTS",
    "block_output",
    "cache_names",
    "linear_output",
]

#: File names of a graph and of its weights.
MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"

#: int64 [batch, sequence], [batch, total] and [batch, positions].
TOKEN_INPUTS = INPUT_IDS, ATTENTION_MASK, LOGITS_INDICES = "input_ids", "attention_mask", "logits_indices"
#: float32 [batch, positions, vocabulary].
LOGITS = "logits"
#: What stands before a name of `cache_names` in the names of inputs and of outputs.
PAST, PRESENT = "past_key_values.", "present."

#: Domain of our operators, and the version of their definition that the graphs import and the kernels implement.
DOMAIN, OPERATOR_VERSION = "com.nanoquant", 1
LINEAR_OP, GROUP_OP = "NanoQuantLinear", "NanoQuantLinearGroup"
ATTENTION_OP, EMBEDDING_OP, HEAD_OP = "NanoQuantAttention", "NanoQuantEmbedding", "NanoQuantHead"
#: All operators of the domain.
OPERATORS = (LINEAR_OP, GROUP_OP, ATTENTION_OP, EMBEDDING_OP, HEAD_OP)


def cache_names(layers: int) -> list[str]:
    """ "{layer}.key" and "{layer}.value" of each layer, as the names of the cache's inputs and outputs end.

    Example:
        >>> [PAST + name for name in cache_names(1)]
        ['past_key_values.0.key', 'past_key_values.0.value']
    """
    return [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def block_output(block: int) -> str:
    """Name of the value that leaves decoder block `block`, [batch, sequence, hidden_size], activation type."""
    return f"block.{block}.output"


def linear_output(name: str) -> str:
    """Name of the value that leaves the compressed layer with this module path, [batch, sequence, out_features]."""
    return f"{name}.output"
