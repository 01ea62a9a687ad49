# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models (their config.json) and published speeds, each with its source."""

from __future__ import annotations

from typing import Any

__all__ = ["MODELS", "OFFICIAL", "OTHERS"]


def _config(
    kind: str, vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int, head_dim: int, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_dim,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        **({"hidden_activation": "gelu_pytorch_tanh"} if kind == "gemma2" else {}),
    }


MODELS = {
    "smollm2-135m": _config("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "smollm2-1.7b": _config("llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
    "llama-3.2-1b": _config("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": _config("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "llama-3-8b": _config("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "llama-2-7b": _config("llama", 32000, 4096, 11008, 32, 32, 32, 128, False),
    "llama-2-13b": _config("llama", 32000, 5120, 13824, 40, 40, 40, 128, False),
    "llama-2-70b": _config("llama", 32000, 8192, 28672, 80, 64, 8, 128, False),
    "qwen3-0.6b": _config("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "qwen3-1.7b": _config("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "qwen3-4b": _config("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "qwen3-8b": _config("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "qwen3-14b": _config("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False),
    "qwen3-32b": _config("qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False),
    "gemma-2-2b": _config("gemma2", 256000, 2304, 9216, 26, 8, 4, 256, True),
}

_PAPER = "arXiv 2602.06694"
#: (device, model, bits per weight, new tokens after 128, tokens a second, source): NanoQuant by its official code.
OFFICIAL = (
    ("rtx-3050", "llama-3.2-1b", 1.0, 128, 211, _PAPER),
    ("rtx-3050", "llama-3.2-1b", 1.0, 1024, 154, _PAPER),
    ("rtx-3050", "llama-3.2-3b", 1.0, 128, 102, _PAPER),
    ("rtx-3050", "llama-3.2-3b", 1.0, 1024, 66, _PAPER),
    ("rtx-3050", "llama-2-7b", 0.55, 128, 127, _PAPER),
    ("rtx-3050", "llama-2-7b", 0.55, 1024, 86, _PAPER),
    ("rtx-3050", "llama-2-13b", 0.55, 128, 81, _PAPER),
    ("rtx-3050", "llama-2-70b", 0.55, 128, 19.18, _PAPER),
    ("h100", "llama-2-13b", 1.0, 128, 217, _PAPER),
    ("h100", "qwen3-32b", 1.0, 128, 100, _PAPER),
    ("h100", "qwen3-0.6b", 1.0, 64, 460, _PAPER + ", read off a chart"),
    ("h100", "qwen3-1.7b", 1.0, 64, 412, _PAPER + ", read off a chart"),
    ("h100", "qwen3-4b", 1.0, 64, 286, _PAPER + ", read off a chart"),
    ("h100", "qwen3-8b", 1.0, 64, 248, _PAPER + ", read off a chart"),
    ("h100", "llama-2-70b", 1.0, 64, 65, _PAPER + ", read off a chart"),
)

_EDGE = "TensorRT Edge-LLM 0.8.0, INT4 AWQ"
_MLC = "NVIDIA's Orin Nano Super announcement, MLC INT4"
_Q1 = "llama.cpp Q1_0 by PrismML"
#: (device, power mode, model, bits a weight, bits of the head, context, tokens a second, source): other formats.
#: INT4 in groups of 128 with 16-bit scale and zero is counted as 4.25 bits, its head as 16; MLC's groups of 32 as 4.5.
OTHERS = (
    ("jetson-orin-nano-8gb", "", "qwen3-0.6b", 4.25, 16, 512, 69.4, _EDGE),
    ("jetson-orin-nano-8gb", "", "qwen3-1.7b", 4.25, 16, 512, 36.3, _EDGE),
    ("jetson-orin-nx-16gb", "", "qwen3-0.6b", 4.25, 16, 512, 110.8, _EDGE),
    ("jetson-orin-nx-16gb", "", "qwen3-1.7b", 4.25, 16, 512, 58.8, _EDGE),
    ("jetson-orin-nx-16gb", "", "qwen3-4b", 4.25, 16, 512, 30.4, _EDGE),
    ("jetson-orin-nx-16gb", "", "qwen3-8b", 4.25, 16, 512, 18.6, _EDGE),
    ("jetson-agx-orin-64gb", "", "qwen3-0.6b", 4.25, 16, 512, 177.2, _EDGE),
    ("jetson-agx-orin-64gb", "", "qwen3-4b", 4.25, 16, 512, 52.0, _EDGE),
    ("jetson-agx-orin-64gb", "", "qwen3-8b", 4.25, 16, 512, 32.1, _EDGE),
    ("jetson-agx-thor", "", "qwen3-0.6b", 4.25, 16, 512, 270.2, "TensorRT Edge-LLM 0.4.0, INT4"),
    ("jetson-agx-thor", "", "qwen3-8b", 4.25, 16, 512, 47.7, "TensorRT Edge-LLM 0.4.0, INT4"),
    ("jetson-orin-nano-8gb", "15W", "llama-3.2-3b", 4.5, 4.5, 256, 27.7, _MLC),
    ("jetson-orin-nano-8gb", "MAXN_SUPER", "llama-3.2-3b", 4.5, 4.5, 256, 43.07, _MLC),
    ("jetson-orin-nano-8gb", "15W", "llama-3-8b", 4.5, 4.5, 256, 14.0, _MLC + " (Llama 3.1 8B)"),
    ("jetson-orin-nano-8gb", "MAXN_SUPER", "llama-3-8b", 4.5, 4.5, 256, 19.14, _MLC + " (Llama 3.1 8B)"),
    ("jetson-orin-nano-8gb", "15W", "gemma-2-2b", 4.5, 4.5, 256, 21.5, _MLC),
    ("jetson-orin-nano-8gb", "MAXN_SUPER", "gemma-2-2b", 4.5, 4.5, 256, 34.97, _MLC),
    ("rtx-5090", "", "qwen3-1.7b", 1.125, 1.125, 128, 627, _Q1),
    ("rtx-5090", "", "qwen3-8b", 1.125, 1.125, 128, 373, _Q1),
)
