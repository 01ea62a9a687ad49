# SPDX-License-Identifier: Apache-2.0
"""GGUF files of the families besides Llama: the logits of the model that was written, by gguf-py names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.gguf_header import GgufHeader
from nanoquant_edge.models.gguf_file import config_changes
from nanoquant_edge.models.loading import load_model
from tests.families import family_config
from tests.tiny import write_tokenizer


def random_model(name: str, **changes: Any) -> Any:
    """A transformers model of a family with random weights, norms and biases off their defaults."""
    config = family_config(name, **changes)
    kind = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[1] ** 0.5) if parameter.ndim == 2 else parameter.add_(0.1 * noise)
    model.tie_weights()
    return model


def write(path: Path, model: Any, architecture: str, **extra: float) -> Path:
    """The model as llama.cpp's converter writes it: names from gguf-py, Gemma's norm weights with their 1 added."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    for key, value in extra.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{architecture}.{key}", value)
    add_tokenizer(writer, path, "llama" if architecture.startswith("gemma") else "gpt2")
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, suffix = name.rsplit(".", 1)
        stored = names.get_name(module)
        assert stored is not None, name
        array = value.numpy() + 1 if architecture.startswith("gemma") and "norm" in name else value.numpy()
        writer.add_tensor(f"{stored}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, path: Path, kind: str) -> None:
    """The tokenizer of `tests.tiny`, in the fields of llama.cpp."""
    write_tokenizer(path.parent)
    tokenizer = json.loads((path.parent / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (path.parent / name).unlink()
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(place) for place in range(len(tokens))])
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(tokens) - 5))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


@pytest.mark.parametrize(
    ("family", "architecture", "extra"),
    [
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {}),
        ("qwen3-odd", "qwen3", {}),
        ("gemma2", "gemma2", {"attention.sliding_window": 6}),
        ("gemma3", "gemma3", {"attention.sliding_window": 6}),
    ],
)
def test_logits_are_those_of_the_written_model(
    tmp_path: Path, family: str, architecture: str, extra: dict[str, float]
) -> None:
    changes: dict[str, Any] = {}
    if family == "qwen3-odd":  # neither hidden / heads nor the usual 128, and another base of the positions
        family = "qwen3"
        changes = {"head_dim": 24, "rope_parameters": {"rope_theta": 3e5, "rope_type": "default"}}
    if family.startswith("gemma"):
        # What a GGUF file does not state is llama.cpp's and transformers' default of the architecture.
        changes = {"layer_types": None, "query_pre_attn_scalar": 256, "num_hidden_layers": 7}
        if family == "gemma3":
            local = {"rope_theta": 1e4, "rope_type": "default"}
            theta = {"rope_theta": 5e5, "rope_type": "default"}
            changes["rope_parameters"] = {"full_attention": theta, "sliding_attention": local}
        if family == "gemma2":
            changes |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    model = random_model(family, **changes)
    path = write(tmp_path / "m.gguf", model, architecture, **extra)
    ids = torch.arange(3, 40)[None]
    with load_model(path) as source:
        assert source.family.name == family
        assert source.decoder.num_heads == model.config.num_attention_heads
        assert source.config["model_type"] == model.config.model_type
        with torch.no_grad():
            torch.testing.assert_close(source.model(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


def test_an_architecture_that_is_not_read_from_gguf(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "opt")
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NqEdgeError, match="'opt' is not read from GGUF") as caught, load_model(tmp_path / "m.gguf"):
        pass
    assert caught.value.code == "NQ-ARCH"
    assert "folder" in caught.value.hint


def test_the_large_gemma_2_scales_its_queries_otherwise() -> None:
    fields = {"general.architecture": "gemma2", "gemma2.embedding_length": 4608, "gemma2.attention.head_count": 32}
    assert config_changes(GgufHeader({**fields, "gemma2.block_count": 46}, {}, {}, 0)) == {"query_pre_attn_scalar": 144}
    assert config_changes(GgufHeader({**fields, "gemma2.block_count": 42}, {}, {}, 0)) == {}
