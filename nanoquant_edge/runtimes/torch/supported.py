# SPDX-License-Identifier: Apache-2.0
"""Which decoders the fused GPU kernels compute: Llama's block, with biases and norms of query and key heads."""

from __future__ import annotations

from ...errors import NqEdgeError
from ...models import DecoderConfig, RotaryConfig

__all__ = ["check_supported"]


def check_supported(config: DecoderConfig) -> RotaryConfig:
    """Refuse a decoder that these kernels would compute wrongly.

    Returns:
        Its rotary embedding.

    Raises:
        NqEdgeError: NQ-ARCH naming the first feature that is missing here.
    """
    family = config.structure
    missing = {
        "norms other than RMSNorm before each half of a block": family.norm != "rms" or len(family.block_norms) != 2,
        f"activation {config.activation}": config.activation != "silu" or not family.gate,
        "biases behind attention": config.output_bias and not config.attention_bias,
        "soft-capping": config.attention_cap is not None or config.logit_cap is not None,
        "sliding windows": any(config.window_of(block) for block in range(config.num_layers)),
        "another scale of the attention scores": config.query_scale not in (None, config.head_dim),
    }
    found = [feature for feature, there in missing.items() if there]
    if found or config.rotary is None:
        first = [*found, "learned positions"][0]
        raise NqEdgeError(
            "NQ-ARCH",
            f"the PyTorch backend has no {first}, which this {config.family} model needs.",
            "Export it, and run the bundle with ONNX Runtime or TensorRT.",
        )
    return config.rotary
