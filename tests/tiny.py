# SPDX-License-Identifier: Apache-2.0
"""Tiny random models made on the spot: a checkpoint folder with a real (small) tokenizer, without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanoquant_edge.checkpoint import (
    Checkpoint,
    PackedLayer,
    QuantizationSettings,
    pack_signs,
    true_bits_per_weight,
    write_checkpoint,
)
from nanoquant_edge.models import DecoderConfig, family_of

TEXT = (
    "The quick brown fox jumps over the lazy dog. Größe, naïve façade, 東京, emoji 🙂🚀 and numbers 3.14159!\n"
    "A model of language predicts the next token from those before it; a quantized one does so in fewer bits.\n"
) * 20


def llama_config(**changes: Any) -> dict[str, Any]:
    """config.json of a tiny Llama with grouped-query attention, odd widths and head_dim != hidden / heads."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    config.update(changes)
    return config


def write_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """Train a byte-level BPE tokenizer with <unk>, <s>, </s> and chat markers as special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))


def random_layer(
    rng: np.random.Generator,
    m: int,
    n: int,
    rank: int,
    scale_dtype: Any = np.float16,
    bias: bool = False,
    mid: bool = False,
) -> PackedLayer:
    """Random factors whose dense weight has entries of about 1/sqrt(n)."""
    std = 1.0 / np.sqrt(rank * n)
    return PackedLayer(
        u_packed=pack_signs(rng.standard_normal((m, rank))),
        v_packed=pack_signs(rng.standard_normal((rank, n))),
        scale_out=(std**0.5 * (0.5 + rng.random(m))).astype(scale_dtype),
        scale_in=(std**0.5 * (0.5 + rng.random(n))).astype(scale_dtype),
        scale_mid=(0.5 + rng.random(rank)).astype(scale_dtype) if mid else None,
        bias=(0.1 * rng.standard_normal(m)).astype(scale_dtype) if bias else None,
    )


def linear_shapes(decoder: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Linear name inside a block -> (out_features, in_features)."""
    hidden, ffn = decoder.hidden_size, decoder.intermediate_size
    queries, keys = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }


def tiny_checkpoint(
    folder: Path, seed: int = 0, scale_dtype: Any = np.float16, mid: bool = False, **changes: Any
) -> Checkpoint:
    """Write a random but valid Llama checkpoint with a tokenizer; `changes` go into config.json."""
    config = llama_config(**changes)
    decoder = DecoderConfig.from_dict(config)
    rng = np.random.default_rng(seed)
    shapes = linear_shapes(decoder)
    layers = {}
    for name in family_of(config).layer_names(decoder.num_layers):
        linear = ".".join(name.split(".")[3:])
        m, n = shapes[linear]
        bias = decoder.attention_bias if linear.startswith("self_attn") else decoder.mlp_bias
        rank = int(rng.integers(5, 2 * min(m, n)))  # odd ranks, some above min(m, n)
        layers[name] = random_layer(rng, m, n, rank, scale_dtype, bias, mid)
    hidden = decoder.hidden_size

    def norm() -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float16)

    others = {"model.embed_tokens.weight": rng.standard_normal((decoder.vocab_size, hidden)).astype(np.float16)}
    for block in range(decoder.num_layers):
        others[f"model.layers.{block}.input_layernorm.weight"] = norm()
        others[f"model.layers.{block}.post_attention_layernorm.weight"] = norm()
    others["model.norm.weight"] = norm()
    if not decoder.tied:
        others["lm_head.weight"] = rng.standard_normal((decoder.vocab_size, hidden)).astype(np.float16)
    settings = QuantizationSettings(
        target_bpw=1.0,
        true_bpw=true_bits_per_weight(layers.values()),
        ranks={name: layer.rank for name, layer in layers.items()},
        scale_dtype=np.dtype(scale_dtype).name,
        head="tied" if decoder.tied else "float16",
    )
    companions = folder.parent / f".{folder.name}.companions"
    companions.mkdir(parents=True, exist_ok=True)
    write_tokenizer(companions, decoder.vocab_size)
    return write_checkpoint(folder, config, settings, layers, others, companions)
