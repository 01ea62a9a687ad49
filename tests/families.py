# SPDX-License-Identifier: Apache-2.0
"""config.json of a tiny model of each family: odd widths, grouped queries, head_dim != hidden / heads, windows."""

from __future__ import annotations

from typing import Any

__all__ = ["FAMILY_CONFIGS", "ONE_EACH", "family_config"]

_COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
_PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]

#: name -> config.json. Windows are shorter than the tests' prompts.
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {
        **_COMMON,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 9,
        "tie_word_embeddings": False,
    },
    # Qwen2 has no head_dim of its own.
    "qwen2": {
        **_COMMON,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    },
    "qwen2-window": {
        **_COMMON,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3": {
        **_COMMON,
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    },
    "gemma2": {
        **_COMMON,
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "num_hidden_layers": 3,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
        "layer_types": _PATTERN,
    },
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "layer_types": _PATTERN,
        "rope_parameters": _GEMMA3_ROPE,
    },
    "opt": {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": 320,
        "hidden_size": 48,
        "ffn_dim": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 256,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    },
}

#: One configuration a family, where all of them would take long.
ONE_EACH = [name for name in FAMILY_CONFIGS if "-" not in name]


def family_config(name: str, **changes: Any) -> dict[str, Any]:
    """A copy of a family's configuration with changes."""
    return {**FAMILY_CONFIGS[name], **changes}
