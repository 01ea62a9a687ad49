# SPDX-License-Identifier: Apache-2.0
"""Reading config.json: what is taken, what is refused, and that the refusal names the value and what works."""

from __future__ import annotations

from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models import FAMILIES, family_of
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import llama_config


def test_sizes_are_read() -> None:
    decoder = read_config(llama_config())
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_layers) == (40, 72, 2)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (4, 2, 16)
    assert decoder.tied
    assert not decoder.attention_bias
    assert decoder.norm_eps == 1e-5
    assert decoder.rotary.kind == "default"


def test_what_a_config_leaves_out_has_the_usual_value() -> None:
    config = llama_config()
    for name in ("num_key_value_heads", "head_dim", "rope_parameters", "tie_word_embeddings", "rms_norm_eps"):
        del config[name]
    decoder = read_config(config)
    assert decoder.num_kv_heads == decoder.num_heads
    assert decoder.head_dim == 10
    assert decoder.rotary.theta == 10000.0
    assert not decoder.tied
    assert decoder.norm_eps == 1e-6


LLAMA3 = {"factor": 8.0, "low_freq_factor": 2, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
    ],
    ids=["rope_parameters", "rope_scaling"],
)
def test_rotary_scaling_in_both_spellings(spelling: dict[str, Any]) -> None:
    rotary = read_config(llama_config(**spelling)).rotary
    assert (rotary.kind, rotary.theta, rotary.factor, rotary.low_freq_factor) == ("llama3", 5e5, 8.0, 2.0)
    assert rotary.high_freq_factor == 4.0
    assert rotary.original_length == 256, "the longest context, where no other is named"


@pytest.mark.parametrize("model_type", ["mixtral", "phi3", "mamba", None, 7, ["llama"]])
def test_unknown_architectures_are_refused_with_what_works(model_type: Any) -> None:
    with pytest.raises(NqEdgeError) as caught:
        read_config(llama_config(model_type=model_type))
    assert caught.value.code == "NQ-ARCH"
    assert repr(model_type) in caught.value.message
    for family in FAMILIES:
        assert all(name in caught.value.hint for name in family.model_types)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"hidden_act": "gelu"}, "NQ-ARCH", "'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "NQ-ARCH", "'yarn'"),
        ({"partial_rotary_factor": 0.5}, "NQ-ARCH", "partial rotary"),
        ({"hidden_size": None}, "NQ-MODEL", "hidden_size = None"),
        ({"hidden_size": 0}, "NQ-MODEL", "hidden_size = 0"),
        ({"vocab_size": -5}, "NQ-MODEL", "vocab_size = -5"),
        ({"num_hidden_layers": 1 << 40}, "NQ-MODEL", "num_hidden_layers"),
        ({"intermediate_size": "72"}, "NQ-MODEL", "intermediate_size = '72'"),
        ({"intermediate_size": 72.0}, "NQ-MODEL", "intermediate_size"),
        ({"num_attention_heads": True}, "NQ-MODEL", "num_attention_heads"),
        ({"num_key_value_heads": 3}, "NQ-MODEL", "not a multiple of 3"),
        ({"head_dim": 15}, "NQ-MODEL", "odd"),
        ({"rms_norm_eps": 0.0}, "NQ-MODEL", "rms_norm_eps"),
        ({"rms_norm_eps": "tiny"}, "NQ-MODEL", "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": "much"}}, "NQ-MODEL", "not numbers"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "NQ-MODEL", "not positive"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 0}}, "NQ-MODEL", "not positive"),
        ({"rope_parameters": "default"}, "NQ-MODEL", "rotary"),
        ({"rope_parameters": [1]}, "NQ-MODEL", "rotary"),
        ({"rope_parameters": {"rope_type": "linear"}}, "NQ-MODEL", "of type linear without factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "NQ-MODEL", "of type llama3 without low_freq_factor"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 2}}, "NQ-MODEL", "divide by 0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "NQ-MODEL", "one rotary embedding"),
        ({"partial_rotary_factor": "half"}, "NQ-MODEL", "rotary"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        read_config(llama_config(**changes))
    assert caught.value.code == code
    assert message in caught.value.message


def test_every_linear_of_a_block_is_compressed_once() -> None:
    decoder = read_config(llama_config())
    family = family_of(llama_config())
    assert sorted(family.linears) == sorted(decoder.linear_shapes())
    assert family.last_linear == family.linears[-1]
    names = family.layer_names(2)
    assert len(set(names)) == 14
    assert names[0] == "model.layers.0.self_attn.q_proj"
    # q, v, o, k, gate, up, down: the method's order (docs/METHOD.md, section 8).
    assert [name.split(".")[-1][0] for name in names[7:]] == list("qvokgud")
