# SPDX-License-Identifier: Apache-2.0
"""Our reading of config.json and transformers', on configurations of many spellings: equal, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models import RotaryConfig
from nanoquant_edge.models.agreement import check_agreement, disagreements
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models.loading import load_model
from tests.compression.support import dense_folder
from tests.families import FAMILY_CONFIGS
from tests.models.support import their_model
from tests.tiny import llama_config

FAMILIES = {"llama": llama_config(), **FAMILY_CONFIGS}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_read_as_transformers_reads_it(name: str) -> None:
    assert list(disagreements(read_config(FAMILIES[name]), their_model(FAMILIES[name]))) == []


#: Field of a reading -> another value of it, and what the refusal says. Each family has one of them.
OTHERWISE = {
    "hidden_size": (56, "the shape of"),
    "num_layers": (4, "the shape of"),
    "vocab_size": (321, "the shape of"),
    "tied": (None, "lm_head"),
    "attention_bias": (None, "the shape of"),
    "mlp_bias": (None, "the shape of"),
    "max_positions": (255, "the longest context is 255 here and 256 in transformers|the shape of"),
    "norm_eps": (1e-3, "the epsilon of"),
    "query_scale": (7.0, "the attention's scale of block 0"),
    "embedding_scale": (3.0, "the embedding's scale is 3"),
    "activation": ("something", "the activation of block 0 is something"),
    "attention_cap": (2.0, "the cap of the scores"),
    "logit_cap": (2.0, "the cap of the logits"),
    "window": (5, "the sliding window of block"),
}


@pytest.mark.parametrize("field", OTHERWISE)
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "qwen2-window"])
def test_a_fact_that_is_read_otherwise_is_named(name: str, field: str) -> None:
    value, message = OTHERWISE[field]
    decoder = read_config(FAMILIES[name])
    other = replace(decoder, **{field: not getattr(decoder, field) if value is None else value})
    model = their_model(FAMILIES[name])
    if field == "window" and not decoder.local:
        other = replace(other, local=(True,) * decoder.num_layers)
    check_agreement(decoder, model, "m")
    with pytest.raises(NqEdgeError, match=message) as caught:
        check_agreement(other, model, "m")
    assert caught.value.code == "NQ-MODEL" and "m is read in two ways" in caught.value.message


@pytest.mark.parametrize("field", ["rotary", "local_rotary"])
def test_another_rotary_embedding_is_named_with_its_block(field: str) -> None:
    model, decoder = their_model(FAMILIES["gemma3"]), read_config(FAMILIES["gemma3"])
    other = replace(decoder, **{field: RotaryConfig(theta=1.001e4)})
    block = 0 if field == "local_rotary" else 1
    with pytest.raises(NqEdgeError, match=f"the rotary embedding of block {block} is RotaryConfig"):
        check_agreement(other, model, "m")


def test_another_class_is_named() -> None:
    with pytest.raises(NqEdgeError, match="the class is Qwen3ForCausalLM here and LlamaForCausalLM in transformers"):
        check_agreement(read_config(FAMILIES["qwen3"]), their_model(llama_config()), "m")


def agrees(config: dict[str, Any]) -> bool:
    """Whether a configuration is read by both, and as the same model; False where either refuses it."""
    try:
        decoder = read_config(config)
    except NqEdgeError:
        return False
    try:
        model = their_model(config)
    except Exception:  # transformers, huggingface_hub and torch raise their own kinds
        return False
    assert list(disagreements(decoder, model)) == []
    return True


#: Configurations that were read otherwise once, or easily could be; True where refusing them would be wrong.
SPELLINGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "scaling beside parameters": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, True),
    "theta in parameters only": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 5e5}},
        True,
    ),
    "mistral with kinds": ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, True),
    "mistral without local blocks": ("mistral", {"layer_types": ["full_attention"] * 2}, True),
    "mistral with kinds and no window": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": None},
        False,
    ),
    "mistral with silent kinds": ("mistral", {"layer_types": None}, True),
    "gemma2 with a pattern": ("gemma2", {"layer_types": None, "sliding_window_pattern": 3}, True),
    "gemma3 with a pattern": ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, True),
    "gemma2 without a window": ("gemma2", {"sliding_window": None}, False),
    "gemma2 by its older activation": ("gemma2", {"hidden_act": "gelu"}, True),
    "gemma3 with flat parameters": ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, False),
    "gemma3 with scaling beside": ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, True),
    "gemma2 with kinds of parameters": ("gemma2", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, False),
    "llama with a window": ("llama", {"sliding_window": 7, "layer_types": ["sliding_attention"] * 2}, True),
    "opt with a theta": ("opt", {"rope_theta": 5.0}, True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_read_the_same_or_refused(spelling: str) -> None:
    family, changes, read = SPELLINGS[spelling]
    assert agrees({**FAMILIES[family], **changes}) == read


#: Fields that a config.json may leave out.
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window", "rope_parameters", "tie_word_embeddings",
            "layer_types", "query_pre_attn_scalar", "rms_norm_eps", "max_position_embeddings", "hidden_activation",
            "hidden_act")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_is_missing_has_transformers_default(name: str, field: str) -> None:
    config = {key: value for key, value in FAMILIES[name].items() if key != field}
    if field in ("num_key_value_heads", "head_dim"):  # their defaults are those of large models
        config |= {"num_attention_heads": 32, "hidden_size": 64, "word_embed_proj_dim": 64}
    assert agrees(config)


_FREQUENCY = st.sampled_from([None, "absent", 1e4, 5e5])
_SCALING = st.sampled_from(
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 100},
        {"full_attention": {"rope_type": "linear", "factor": 3.0}},
        {"full_attention": {"rope_theta": 2e5}, "sliding_attention": {"rope_type": "linear", "factor": 5.0}},
    ]
)  # fmt: skip


@given(
    name=st.sampled_from(["llama", "mistral", "qwen2", "gemma2", "gemma3"]),
    scaling=_SCALING,
    parameters=_SCALING,
    theta=_FREQUENCY,
    local=_FREQUENCY,
    original=st.sampled_from([None, "absent", 64, 128]),
)
def test_rotary_parameters_in_any_combination(
    name: str, scaling: Any, parameters: Any, theta: Any, local: Any, original: Any
) -> None:
    fields = {"rope_theta": theta, "rope_local_base_freq": local, "original_max_position_embeddings": original}
    config = {**FAMILIES[name], "rope_scaling": scaling, "rope_parameters": parameters}
    agrees(json.loads(json.dumps({**config, **{key: v for key, v in fields.items() if v != "absent"}})))


@pytest.mark.parametrize("stream", [False, True])
def test_a_difference_stops_the_loading(tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dense_folder(tmp_path / "m")
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.__init__", _other_epsilon)
    with (
        pytest.raises(NqEdgeError, match=r"the epsilon of .* is 1e-05 here and 0\.5"),
        load_model(folder, stream=stream),
    ):
        pass


def _other_epsilon(self: Any, hidden_size: int, **_options: Any) -> None:
    import torch

    torch.nn.Module.__init__(self)
    self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(hidden_size)), 0.5


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tie_word_embeddings", None, "'tie_word_embeddings' expected bool"),
        ("bos_token_id", "<s>", "'bos_token_id' with value '<s>'"),
        ("hidden_size", 42, r"hidden size \(42\) is not a multiple"),
        ("use_cache", "yes", "'use_cache' expected bool"),
    ],
)
def test_what_transformers_refuses_in_config_json_is_said(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    folder = dense_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(llama_config(**{field: value})))
    with pytest.raises(NqEdgeError, match=reason) as caught, load_model(folder):
        pass
    assert caught.value.code == "NQ-MODEL" and f"config.json of {folder}" in caught.value.message
