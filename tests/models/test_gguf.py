# SPDX-License-Identifier: Apache-2.0
"""Reading GGUF: the same logits as the model that was written, and refusals of what would be read wrongly."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from tests.compression.support import dense_llama
from tests.tiny import write_tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs side by side, as llama.cpp's `llama` architecture stores queries and keys."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, architecture: str = "llama", drop: str = "", **extra: Any) -> Path:
    """A GGUF file of a tiny Llama with the tokenizer of `tests.tiny`."""
    config = model.config
    write_tokenizer(path.parent)
    tokenizer = json.loads((path.parent / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (path.parent / name).unlink()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(tokens) - 5))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module = name.removesuffix(".weight")
        prefix = ""
        if module.startswith("model.layers."):
            _, _, block, module = module.split(".", 3)
            prefix = f"blk.{block}."
        array = value.numpy()
        if module == "self_attn.q_proj":
            array = interleaved(array, config.num_attention_heads)
        if module == "self_attn.k_proj":
            array = interleaved(array, config.num_key_value_heads)
        stored = f"{prefix}{NAMES[module]}.weight"
        if stored != drop:
            writer.add_tensor(stored, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama(**changes: Any) -> Any:
    return dense_llama(rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, **changes)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_tokens_are_those_of_the_written_model(
    tmp_path: Path, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", model)
    ids = torch.arange(3, 60)[None]
    with load_model(path) as source:
        assert "it/s" not in capsys.readouterr().err
        with torch.no_grad():
            torch.testing.assert_close(source.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        assert source.name == "tiny"
        assert "GGUF" in source.note
        assert source.decoder.tied == tied
        assert source.decoder.head_dim == 16
        assert {path.name for path in source.companions.iterdir()} >= {"tokenizer.json", "generation_config.json"}
        write_tokenizer(tmp_path)
        from tokenizers import Tokenizer

        text = "The quick brown fox: naïve 東京 3.14"
        expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
        assert source.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        ends = json.loads((source.companions / "generation_config.json").read_text())
        assert ends["eos_token_id"] == 2
        companions = source.companions
    assert not companions.exists()


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04" + bytes(100), b"not a model at all"])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(NqEdgeError, match="is not a GGUF file") as caught, load_model(path):
        pass
    assert caught.value.code == "NQ-MODEL"


@pytest.mark.parametrize("keep", [4, 20, 400, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, keep: float) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(NqEdgeError, match="is damaged") as caught, load_model(path):
        pass
    assert caught.value.code == "NQ-MODEL"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"architecture": "mamba"}, "NQ-ARCH", "'mamba' is not supported"),
        ({"llama__rope__scaling__type": "linear"}, "NQ-ARCH", "scales its rotary positions"),
        ({"drop": "blk.1.ffn_up.weight"}, "NQ-MODEL", "lacks 1 tensors"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, options: dict, code: str, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama(), **options)
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(path):
        pass
    assert caught.value.code == code


def test_a_missing_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    write_gguf(tmp_path / "m.gguf", llama())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NqEdgeError, match="needs the package gguf") as caught, load_model(tmp_path / "m.gguf"):
        pass
    assert caught.value.code == "NQ-MISSING"
    assert "'gguf>=" in caught.value.hint


def test_a_reader_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama())
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "5.17.0")
    message = r"needs transformers 5\.23 or newer; 5\.17\.0 is installed"
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(path):
        pass
    assert caught.value.code == "NQ-MISSING"
