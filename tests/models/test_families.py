# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration of each family: options, defaults, windows, rotary tables, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models import FAMILIES, DecoderConfig, family_of
from nanoquant_edge.models.config_reader import read_config
from tests.families import FAMILY_CONFIGS, family_config


def read(name: str, drop: tuple[str, ...] = (), **changes: Any) -> DecoderConfig:
    config = {key: value for key, value in family_config(name, **changes).items() if key not in drop}
    return read_config(config)


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_the_description_names_every_parameter_of_transformers(name: str) -> None:
    config = family_config(name)
    decoder, family = read_config(config), family_of(config)
    entries = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **entries))
    expected = {key: tuple(value.shape) for key, value in model.named_parameters()}
    found = {**decoder.norm_shapes(), f"{family.embedding}.weight": (decoder.vocab_size, decoder.hidden_size)}
    if not decoder.tied:
        found["lm_head.weight"] = (decoder.vocab_size, decoder.hidden_size)
    if family.positions:
        rows = decoder.max_positions + family.position_offset
        found[f"{family.positions}.weight"] = (rows, decoder.hidden_size)
    shapes = decoder.linear_shapes()
    assert sorted(shapes) == sorted(family.linears) and family.last_linear == family.linears[-1]
    for path in family.layer_names(decoder.num_layers):
        linear = path.removeprefix(f"{family.blocks}.").partition(".")[2]
        found[f"{path}.weight"] = shapes[linear]
        if decoder.has_bias(linear):
            found[f"{path}.bias"] = shapes[linear][:1]
    assert found == expected


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_what_transformers_writes_is_read_the_same(name: str) -> None:
    config = family_config(name)
    entries = {key: value for key, value in config.items() if key != "model_type"}
    written = AutoConfig.for_model(config["model_type"], **entries).to_dict()
    assert read_config(written) == read_config(config)


#: What transformers sets where a config.json is silent, for the fields that this reads.
SILENT = ("sliding_window", "layer_types", "query_pre_attn_scalar", "rope_parameters", "tie_word_embeddings",
          "head_dim", "use_sliding_window", "max_window_layers", "attn_logit_softcapping", "final_logit_softcapping",
          "attention_bias", "ffn_dim", "max_position_embeddings", "word_embed_proj_dim")  # fmt: skip


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    config = {key: value for key, value in family_config(name).items() if key not in SILENT}
    config["num_hidden_layers"] = 30  # so that patterns show
    entries = {key: value for key, value in config.items() if key != "model_type"}
    written = AutoConfig.for_model(config["model_type"], **entries).to_dict()
    found, expected = read_config(config), read_config(written)
    assert found == expected


def test_windows() -> None:
    mistral = read("mistral")
    assert [mistral.window_of(block) for block in range(2)] == [9, 9] and mistral.window_of(0, 9) == 0
    assert read("mistral", sliding_window=None).window_of(0) == 0
    assert read("mistral", sliding_window=256).window_of(0) == 0, "as long as the context: none"
    assert read("qwen2", sliding_window=8).local == ()
    assert read("qwen2-window").local == (False, True)
    assert read("gemma3").local == (True, False, True)
    assert read("gemma3", ("layer_types",), num_hidden_layers=12).local == ((True,) * 5 + (False,)) * 2
    assert read("gemma3", ("layer_types",), sliding_window_pattern=2, num_hidden_layers=4).local == (True, False) * 2


def test_gemma() -> None:
    two, three = read("gemma2"), read("gemma3")
    assert (two.attention_cap, two.logit_cap, three.attention_cap, three.logit_cap) == (5.0, 3.0, None, None)
    assert two.attention_scale == 24**-0.5 and two.embedding_scale == math.sqrt(40) and two.activation == "gelu_tanh"
    assert two.local_rotary is None and two.rotary_of(0) is two.rotary
    assert three.local_rotary is not None and three.rotary is not None
    assert (three.local_rotary.theta, three.rotary.theta, three.rotary.kind) == (1e4, 1e6, "linear")
    assert three.rotary_of(0) is three.local_rotary and three.rotary_of(1) is three.rotary
    # The spelling before transformers 5.
    old = read("gemma3", ("rope_parameters",), rope_theta=1e6, rope_local_base_freq=1e4,
               rope_scaling={"rope_type": "linear", "factor": 8.0})  # fmt: skip
    assert old == three


def test_biases() -> None:
    assert [read("qwen2").has_bias(name) for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")] == [
        True, False, False,
    ]  # fmt: skip
    assert not read("qwen3").has_bias("self_attn.k_proj")
    assert all(read("qwen3", attention_bias=True).has_bias(f"self_attn.{name}_proj") for name in "qkvo")
    assert all(read("opt").has_bias(name) for name in family_of(FAMILY_CONFIGS["opt"]).linears)
    assert not any(read("opt", enable_bias=False).has_bias(name) for name in ("fc1", "self_attn.out_proj"))


@pytest.mark.parametrize(
    ("name", "changes", "code", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "NQ-ARCH", "OPT-350M"),
        ("opt", {"word_embed_proj_dim": 24}, "NQ-ARCH", "word_embed_proj_dim 24"),
        ("opt", {"activation_function": "gelu"}, "NQ-ARCH", "'gelu'"),
        ("opt", {"layer_norm_elementwise_affine": False}, "NQ-ARCH", "layer norm without weights"),
        ("opt", {"num_attention_heads": 5}, "NQ-MODEL", "not a multiple of 5"),
        ("gemma2", {"use_bidirectional_attention": True}, "NQ-ARCH", "bidirectional"),
        ("gemma2", {"hidden_activation": "relu"}, "NQ-ARCH", "'relu'"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "NQ-MODEL", "attn_logit_softcapping"),
        ("gemma2", {"query_pre_attn_scalar": "256"}, "NQ-MODEL", "query_pre_attn_scalar"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "NQ-ARCH", "soft-capping of attention scores"),
        ("gemma3", {"layer_types": ["full_attention"]}, "NQ-MODEL", "list of 3 names"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 3}, "NQ-ARCH", "'chunked_attention'"),
        ("gemma3", {"rope_parameters": {"full_attention": 7}}, "NQ-MODEL", "rotary"),
        ("gemma3", {"final_logit_softcapping": float("nan")}, "NQ-MODEL", "final_logit_softcapping"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "NQ-MODEL", "no sliding window"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": -1}, "NQ-MODEL", "max_window_layers"),
        ("mistral", {"sliding_window": 0}, "NQ-MODEL", "sliding_window = 0"),
    ],
)
def test_what_is_refused(name: str, changes: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        read(name, **changes)
    assert caught.value.code == code and message in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3", "vision tower"),
        ("mixtral", "mixtures of experts"),
        ("qwen3_moe", "mixtures of experts"),
        ("mamba", "state-space"),
        ("phi3", "one layer"),
        ("made_up", ""),
    ],
)
def test_other_architectures_are_refused_by_name_with_what_works(model_type: str, reason: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        family_of({"model_type": model_type})
    assert caught.value.code == "NQ-ARCH" and repr(model_type) in caught.value.message
    assert reason in caught.value.message
    for family in FAMILIES:
        assert all(name in caught.value.hint for name in (*family.model_types, family.models))
