# SPDX-License-Identifier: Apache-2.0
"""Reading GGUF: the same logits as the model that was written, and refusals of what would be read wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models.gguf.config import read_gguf_config
from nanoquant_edge.models.gguf.content import GgufContent
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.rotary import frequencies
from tests.models.gguf_files import llama, random_model, write_gguf
from tests.tiny import write_tokenizer

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def check(path: Path, model: Any) -> None:
    """The file gives the logits of the model that was written to it."""
    ids = torch.arange(3, 60)[None]
    with load_model(path) as source, torch.no_grad():
        torch.testing.assert_close(source.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_tokens_are_those_of_the_written_model(
    tmp_path: Path, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", model, fields={"tokenizer.chat_template": "{{ messages }}"})
    check(path, model)
    with load_model(path) as source:
        assert "it/s" not in capsys.readouterr().err
        assert source.name == "tiny"
        assert "GGUF" in source.note
        assert source.decoder.tied == tied
        assert source.decoder.head_dim == 16
        names = {path.name for path in source.companions.iterdir()}
        assert names == {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
        write_tokenizer(tmp_path)
        text = "The quick brown fox: naïve 東京 3.14"
        expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
        assert source.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert json.loads((source.companions / "generation_config.json").read_text())["eos_token_id"] == 2
        companions = source.companions
    assert not companions.exists()


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3 with odd heads": (
        "qwen3", {"head_dim": 24, "rope_parameters": {"rope_theta": 3e5, "rope_type": "default"}}, {}
    ),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}, {}),
    "gemma2": (
        "gemma2",
        {"layer_types": None, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
        {".attention.sliding_window": 6, ".attn_logit_softcapping": 5.0, ".final_logit_softcapping": 3.0},
    ),
    "gemma2 with the usual caps": (
        "gemma2",
        {"layer_types": None, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0,
         "final_logit_softcapping": 30.0},
        {".attention.sliding_window": 6},
    ),
    "gemma3": (
        "gemma3",
        {"layer_types": None, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "rope_parameters": {
            "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
        {".attention.sliding_window": 6, ".rope.scaling.type": "linear", ".rope.scaling.factor": 8.0},
    ),
    "gemma3 with its own pattern": (
        "gemma3",
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "query_pre_attn_scalar": 16,
         "num_hidden_layers": 4, "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"}}},
        {".attention.sliding_window": 6, ".attention.sliding_window_pattern": [False, True, False, True],
         ".rope.freq_base_swa": 2e4},
    ),
    "gemma3 without windows": (
        "gemma3",
        {"layer_types": ["full_attention"] * 3, "query_pre_attn_scalar": 16, "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
        {},
    ),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, linear": (
        "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
        {".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0},
    ),
    "llama, a factor without a type": (
        "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
        {".rope.scaling.factor": 4.0},
    ),
    "llama, the older key": (
        "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        {".rope.scale_linear": 2.0},
    ),
    "llama, a type that switches off": (
        "llama", {}, {".rope.scaling.type": "none", ".rope.scaling.factor": 4.0, ".rope.scaling.finetuned": True},
    ),
    "llama, width from the positions": (
        "llama", {}, {".attention.key_length": None, ".attention.value_length": None, ".rope.dimension_count": 16},
    ),
    "llama, no base": ("llama", {}, {".rope.freq_base": None}),
    "llama, heads in a list": ("llama", {}, {".attention.head_count": [4, 4], ".feed_forward_length": [72, 72]}),
    "llama, said anyway": ("llama", {}, {".expert_count": 0, ".attention.causal": True, ".logit_scale": 0.0,
                                         ".attention.sliding_window": 256, "general.type": "model"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_and_spelling(tmp_path: Path, name: str) -> None:
    family, changes, fields = FAMILIES[name]
    model = random_model(family, **changes)
    path = write_gguf(tmp_path / "m.gguf", model, family, fields=fields)
    check(path, model)
    with load_model(path) as source:
        assert source.family.name == family
        assert source.config["model_type"] == model.config.model_type
        assert read_config(source.config) == read_config(model.config.to_dict())


def factors(theta: float, **parameters: Any) -> np.ndarray:
    """`rope_freqs.weight`, by the formula of llama.cpp's converter."""
    original = parameters.get("original_max_position_embeddings", 8192)
    low, high, factor = (parameters[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    found = []
    for frequency in 1.0 / theta ** (np.arange(0, 16, 2) / 16):
        wavelength = 2 * np.pi / frequency
        smooth = (original / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1.0 if wavelength < original / high else factor if wavelength > original / low else between)
    return np.array(found, np.float32)


def test_the_factors_of_llama_3_are_its_scaling(tmp_path: Path) -> None:
    model = llama(rope_parameters=LLAMA3, max_position_embeddings=16384)
    stored = {"rope_freqs.weight": factors(5e5, **{k: v for k, v in LLAMA3.items() if k != "rope_theta"})}
    path = write_gguf(tmp_path / "m.gguf", model, change=lambda tensors: tensors.update(stored))
    check(path, model)
    with load_model(path) as source:
        assert source.config["rope_parameters"] == LLAMA3
        ours = frequencies(source.decoder.rotary, 16)
        np.testing.assert_allclose(ours, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write_gguf(tmp_path / "ones.gguf", llama(), change=lambda tensors: tensors.update(ones))
    check(path, llama())


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


Arrays = dict[str, np.ndarray]
UP = "blk.1.ffn_up.weight"
#: what is wrong -> (fields, change of the tensors, code, words of the message)
FAULTS: dict[str, tuple[dict[str, Any], Callable[[Arrays], object] | None, str, str]] = {
    "a tensor is missing": ({}, lambda t: t.pop(UP), "NQ-MODEL", "lacks 1 tensors, the first is model.layers.1.mlp"),
    "a tensor of another shape": ({}, lambda t: t.update({UP: t[UP][:3]}), "NQ-MODEL", "has shape"),
    "a tensor more": ({}, lambda t: t.update({"blk.0.ffn_gate_inp.weight": np.ones((2, 2), np.float32)}), "NQ-MODEL",
                      "has no place for, the first is blk.0.ffn_gate_inp.weight"),
    "one bias of two": ({}, lambda t: t.update({"blk.1.attn_q.bias": np.ones(64, np.float32)}), "NQ-MODEL",
                        "has no place for, the first is model.layers.1.self_attn.q_proj.bias"),
    "a bias is missing": ({}, lambda t: t.update({"blk.0.attn_q.bias": np.ones(64, np.float32)}), "NQ-MODEL",
                          "lacks 7 tensors, the first is model.layers.0.self_attn.k_proj.bias"),
    "a name spelled otherwise": ({}, lambda t: t.update({"blk.01.ffn_up.weight": t[UP]}), "NQ-MODEL",
                                 "the first is blk.01.ffn_up.weight"),
    "long and short factors": ({}, lambda t: t.update({"rope_factors_long.weight": np.ones(8, np.float32)}), "NQ-MODEL",
                               "the first is rope_factors_long.weight"),
    "factors of another scaling": ({}, lambda t: t.update({"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}),
                                   "NQ-ARCH", "factors of rotary positions that are not those of Llama 3"),
    "factors of another length": ({}, lambda t: t.update({"rope_freqs.weight": np.ones(4, np.float32)}), "NQ-ARCH",
                                  "factors of rotary positions"),
    "factors below one": ({}, lambda t: t.update({"rope_freqs.weight": np.zeros(8, np.float32)}), "NQ-ARCH", "factors"),
    "no table": ({}, lambda t: t.pop("token_embd.weight"), "NQ-MODEL", "lacks the tensor token_embd.weight"),
    "YaRN": ({".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0}, None, "NQ-ARCH", "by 'yarn'"),
    "experts": ({".expert_count": 8}, None, "NQ-ARCH", "has llama.expert_count = '8'"),
    "a field of tomorrow": ({".attention.new_trick": 1.0}, None, "NQ-ARCH", "has llama.attention.new_trick = '1.0'"),
    "a list of tomorrow": ({".attention.new_trick": [1, 2]}, None, "NQ-ARCH", "new_trick = 'a list of 2'"),
    "no mask": ({".attention.causal": False}, None, "NQ-ARCH", "has llama.attention.causal = 'False'"),
    "a scale of logits": ({".logit_scale": 0.5}, None, "NQ-ARCH", "has llama.logit_scale"),
    "a scale of scores": ({".attention.scale": 0.5}, None, "NQ-ARCH", "has llama.attention.scale"),
    "a cap of scores": ({".attn_logit_softcapping": 50.0}, None, "NQ-ARCH", "has llama.attn_logit_softcapping"),
    "a window": ({".attention.sliding_window": 9}, None, "NQ-ARCH", "has a sliding window"),
    "partly rotated heads": ({".rope.dimension_count": 8}, None, "NQ-ARCH", "rope.dimension_count = 8 beside heads of"),
    "values of another width": ({".attention.value_length": 8}, None, "NQ-ARCH", "attention.value_length = 8 beside"),
    "blocks of different widths": ({".feed_forward_length": [72, 80]}, None, "NQ-ARCH", "in some blocks"),
    "another vocabulary": ({".vocab_size": 321}, None, "NQ-ARCH", "vocab_size = 321 beside a table of 320"),
    "no heads": ({".attention.head_count": 0}, None, "NQ-MODEL", "head_count = 0"),
    "heads as a text": ({".attention.head_count": "4"}, None, "NQ-MODEL", "head_count = '4'"),
    "no epsilon": ({".attention.layer_norm_rms_epsilon": None}, None, "NQ-MODEL", "rms_epsilon = None"),
    "no blocks": ({".block_count": None}, None, "NQ-MODEL", "block_count = None"),
    "more blocks than there are": ({".block_count": 3}, None, "NQ-MODEL", "lacks 9 tensors"),
    "an adapter": ({"general.type": "adapter"}, None, "NQ-MODEL", "holds no model but what it calls 'adapter'"),
    "parts": ({"split.count": 3}, None, "NQ-MODEL", "is one of 3 parts"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, fault: str) -> None:
    fields, change, code, message = FAULTS[fault]
    path = write_gguf(tmp_path / "m.gguf", llama(), fields=fields, change=change or (lambda tensors: None))
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(path):
        pass
    assert caught.value.code == code and str(path) in caught.value.message


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("mamba", "'mamba' is not supported"), ("opt", "'opt' is not read from GGUF"), ("phi3", "one layer")],
)
def test_other_architectures_are_refused(tmp_path: Path, architecture: str, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama(), fields={"general.architecture": None})
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", _string(architecture), 1))
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(path):
        pass
    assert caught.value.code == "NQ-ARCH"


def _string(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(("architecture", "blocks"), [("gemma2", 46), ("gemma2", 45), ("gemma3", 62), ("gemma3", 61)])
def test_the_largest_gemmas_scale_their_queries_otherwise(tmp_path: Path, architecture: str, blocks: int) -> None:
    model = random_model(architecture)  # hidden / heads is 10, head_dim 16
    path = write_gguf(tmp_path / "m.gguf", model, architecture, fields={".block_count": blocks})
    assert read_gguf_config(GgufContent(path))["query_pre_attn_scalar"] == (16 if blocks % 2 else 10)


def test_a_missing_reader_names_the_package(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama())
    with pytest.raises(NqEdgeError, match="needs the package gguf") as caught:
        GgufContent(path, has_package=lambda name: name != "gguf")
    assert caught.value.code == "NQ-MISSING"
    assert "'gguf>=" in caught.value.hint
