# SPDX-License-Identifier: Apache-2.0
"""Tiny random models made on the spot: a checkpoint folder with a real (small) tokenizer, without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanoquant_edge.formats.checkpoint import (
    Checkpoint,
    CheckpointParts,
    PackedLayer,
    QuantizationSettings,
    pack_signs,
    quantize_table,
    true_bits_per_weight,
    write_checkpoint,
)
from nanoquant_edge.models import family_of
from nanoquant_edge.models.config_reader import read_config

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


def tiny_checkpoint(
    folder: Path,
    seed: int = 0,
    scale_dtype: Any = np.float16,
    mid: bool = False,
    embedding: str = "float16",
    **changes: Any,
) -> Checkpoint:
    """Write a random but valid checkpoint with a tokenizer; `changes` go into config.json.

    It is a Llama, or of the family that the module `tests.families` made `changes["model_type"]` for.
    Its tables are stored as `embedding` says: "float16", "int8" or "int4".
    """
    config = llama_config(**changes) if "model_type" not in changes else dict(changes)
    decoder = read_config(config)
    family = family_of(config)
    rng = np.random.default_rng(seed)
    shapes = decoder.linear_shapes()
    layers = {}
    for name in family.layer_names(decoder.num_layers):
        linear = name.removeprefix(f"{family.blocks}.").partition(".")[2]
        m, n = shapes[linear]
        rank = int(rng.integers(5, 2 * min(m, n)))  # odd ranks, some above min(m, n)
        layers[name] = random_layer(rng, m, n, rank, scale_dtype, decoder.has_bias(linear), mid)
    hidden = decoder.hidden_size
    others = {f"{family.embedding}.weight": rng.standard_normal((decoder.vocab_size, hidden)).astype(np.float16)}
    for name, shape in decoder.norm_shapes().items():
        centre = 0 if name.endswith("bias") or family.norm == "rms_plus_one" else 1
        others[name] = (centre + 0.1 * rng.standard_normal(shape)).astype(np.float16)
    if family.positions:
        rows = decoder.max_positions + family.position_offset
        others[f"{family.positions}.weight"] = rng.standard_normal((rows, hidden)).astype(np.float16)
    if not decoder.tied:
        others["lm_head.weight"] = rng.standard_normal((decoder.vocab_size, hidden)).astype(np.float16)
    modules = [family.embedding] if decoder.tied else [family.embedding, "lm_head"]
    tables = {} if embedding == "float16" else {m: quantize_table(others[f"{m}.weight"], embedding) for m in modules}
    settings = QuantizationSettings(
        target_bpw=1.0,
        true_bpw=true_bits_per_weight(layers.values()),
        ranks={name: layer.rank for name, layer in layers.items()},
        scale_dtype=np.dtype(scale_dtype).name,
        embedding=embedding,
        head="tied" if decoder.tied else embedding,
    )
    companions = folder.parent / f".{folder.name}.companions"
    companions.mkdir(parents=True, exist_ok=True)
    write_tokenizer(companions, decoder.vocab_size)
    parts = CheckpointParts(config, settings, layers, others, tables)
    return write_checkpoint(folder, parts, companions=companions)
