# SPDX-License-Identifier: Apache-2.0
"""The contract of an exported decoder graph: names of its inputs, outputs and inner values, and of our operators.

Exporters write these names, runtimes bind memory to them, validation and measurements look for them (docs/FORMAT.md,
docs/OPERATOR.md). Shapes of the values are in `exporters.onnx.build_model`.
"""

from __future__ import annotations

__all__ = [
    "ACTIVATION_DTYPES",
    "ATTENTION_MASK",
    "ATTENTION_OP",
    "DATA_FILE",
    "DIALECTS",
    "DOMAIN",
    "EMBEDDING_OP",
    "GROUP_ATTRIBUTES",
    "GROUP_OP",
    "HALF_CACHE_OP",
    "HEAD_OP",
    "INPUT_IDS",
    "LAYOUT_ROWS_LSB_FIRST",
    "LAYOUT_TILES_16X256",
    "LINEAR_ATTRIBUTES",
    "LINEAR_INPUTS",
    "LINEAR_OP",
    "LOGITS",
    "LOGITS_INDICES",
    "MAX_GROUP",
    "MODEL_FILE",
    "OPERATORS",
    "OPERATOR_VERSION",
    "PAST",
    "PRESENT",
    "ROWS_ONLY_DIALECTS",
    "SLOTS",
    "TABLE_ATTRIBUTES",
    "TOKEN_INPUTS",
    "block_output",
    "cache_names",
    "linear_output",
]

#: File names of a graph and of its weights.
MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"

#: How a graph says attention, norm and cache, as manifests name it: operators of ONNX Runtime, standard operators of
#: opset 24, and what TensorRT 10.3 takes.
DIALECTS = ("ort", "onnx24", "trt103")
#: Dialects whose `present.*` hold the new rows only, which the runtime copies into the cache.
ROWS_ONLY_DIALECTS = ("trt103",)
#: Types that activations, the cache and scales may have.
ACTIVATION_DTYPES = ("float32", "float16", "bfloat16")

#: int64 [batch, sequence], [batch, total] and [batch, positions].
TOKEN_INPUTS = INPUT_IDS, ATTENTION_MASK, LOGITS_INDICES = "input_ids", "attention_mask", "logits_indices"
#: int32 [tokens], an input with an empty default, where our attention is in the graph: which of several caches each
#: token belongs to. The attention mask then has one row for each token, whose sum is the token's position plus one.
SLOTS = "slots"
#: float32 [batch, positions, vocabulary].
LOGITS = "logits"
#: What stands before a name of `cache_names` in the names of inputs and of outputs.
PAST, PRESENT = "past_key_values.", "present."

#: Domain of our operators, and the version of their definition that the graphs import and the kernels implement.
DOMAIN, OPERATOR_VERSION = "com.nanoquant", 1
LINEAR_OP, GROUP_OP = "NanoQuantLinear", "NanoQuantLinearGroup"
ATTENTION_OP, EMBEDDING_OP, HEAD_OP = "NanoQuantAttention", "NanoQuantEmbedding", "NanoQuantHead"
#: Attention that keeps keys and values in float16.
HALF_CACHE_OP = "NanoQuantAttentionHalfCache"
#: All operators of the domain.
OPERATORS = (LINEAR_OP, GROUP_OP, ATTENTION_OP, HALF_CACHE_OP, EMBEDDING_OP, HEAD_OP)
#: Inputs and attributes of the compressed layer; those after X come once for each layer of a group.
LINEAR_INPUTS = ("X", "v_packed", "u_packed", "scale_in", "scale_mid", "scale_out", "bias")
LINEAR_ATTRIBUTES = ("in_features", "rank", "out_features", "has_scale_mid", "has_bias", "layout")
GROUP_ATTRIBUTES = ("in_features", "ranks", "out_features", "has_scale_mid", "has_bias", "layout")
#: Most projections of one group, as many as one pass of the CUDA kernels takes.
MAX_GROUP = 4
#: Order of the packed words: rows of int32 words, least significant bit first, 1 is -1; or the tensor-core tiles of
#: `formats.checkpoint.to_tiles`, for GPUs.
LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256 = 0, 1
#: Attributes of an embedding or head in codes.
TABLE_ATTRIBUTES = ("columns", "bits", "group_size")


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
