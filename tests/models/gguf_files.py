# SPDX-License-Identifier: Apache-2.0
"""GGUF files of tiny models, as llama.cpp's converter writes them: names from gguf-py, rotary rows side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

from tests.families import family_config
from tests.tiny import llama_config, write_tokenizer

__all__ = ["llama", "random_model", "vocabulary", "write_gguf"]

Arrays = dict[str, np.ndarray]


def random_model(name: str, **changes: Any) -> Any:
    """A transformers model of a family with random weights, norms and biases off their defaults."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = llama_config(**changes) if name == "llama" else family_config(name, **changes)
    kind = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[1] ** 0.5) if parameter.ndim == 2 else parameter.add_(0.1 * noise)
    model.tie_weights()
    return model


def llama(**changes: Any) -> Any:
    """A random Llama."""
    return random_model("llama", **changes)


def vocabulary(tokenizer: Tokenizer, kind: str = "gpt2", pre: str | None = "gpt-2") -> dict[str, Any]:
    """The fields of a tokenizer of byte pairs."""
    content = json.loads(tokenizer.to_str())
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda text: ids[text])
    special = {token["content"]: token["special"] for token in content["added_tokens"]}
    types = [
        3 if special.get(text) else 4 if text in special else 6 if text.startswith("<0x") else 1 for text in tokens
    ]
    merges = content["model"]["merges"]
    fields = {
        "model": kind,
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in merges],
        "scores": [-float(place) for place in range(len(tokens))] if kind == "llama" else None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0 if kind == "llama" else None,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def write_gguf(
    path: Path,
    model: Any,
    architecture: str = "llama",
    *,
    tokenizer: Tokenizer | None = None,
    fields: dict[str, Any] | None = None,
    change: Callable[[Arrays], object] = lambda tensors: None,
    kinds: dict[str, tuple[np.ndarray, Any]] | None = None,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        path: the file.
        model: a transformers model.
        architecture: `general.architecture`.
        tokenizer: byte pairs; the tokenizer of `tests.tiny` by default.
        fields: further fields, or others; None leaves one out. The architecture's begin with a dot.
        change: changes the tensors, by their names in the file.
        kinds: name of a tensor -> its raw blocks and their type, instead of float32.
    """
    config = model.config
    if tokenizer is None:
        (path.parent / ".tokenizer").mkdir(exist_ok=True)
        write_tokenizer(path.parent / ".tokenizer", config.vocab_size)
        tokenizer = Tokenizer.from_file(str(path.parent / ".tokenizer/tokenizer.json"))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    usual = {
        "general.name": "tiny",
        ".context_length": config.max_position_embeddings,
        ".embedding_length": config.hidden_size,
        ".block_count": config.num_hidden_layers,
        ".feed_forward_length": config.intermediate_size,
        ".attention.head_count": config.num_attention_heads,
        ".attention.head_count_kv": config.num_key_value_heads,
        ".attention.key_length": head_dim,
        ".attention.value_length": head_dim,
        ".attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        ".vocab_size": config.vocab_size,
        ".rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        **vocabulary(tokenizer, "llama" if architecture.startswith("gemma") else "gpt2"),
        "tokenizer.ggml.pre": "default" if architecture.startswith("gemma") else "gpt-2",
        **(fields or {}),
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in usual.items():
        if value is not None:
            _add(writer, architecture + key if key.startswith(".") else key, value)
    tensors = _tensors(model, architecture)
    change(tensors)
    for name, array in tensors.items():
        if name in (kinds or {}):
            raw, kind = (kinds or {})[name]
            writer.add_tensor(name, raw, raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)


def _tensors(model: Any, architecture: str) -> Arrays:
    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: Arrays = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, suffix = name.rsplit(".", 1)
        stored = names.get_name(module)
        assert stored is not None, name
        array = value.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
        if architecture == "llama" and heads:
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        found[f"{stored}.{suffix}"] = array
    return found
