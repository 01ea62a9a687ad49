# SPDX-License-Identifier: Apache-2.0
"""Which architectures are supported: how their blocks are made, what their modules are called, what is compressed.

A new one is an entry of `FAMILIES`, a reader of its config.json in `config_reader` and a tiny configuration in
tests/families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NqEdgeError

__all__ = ["FAMILIES", "Family", "family_named", "family_of"]


@dataclass(frozen=True)
class Family:
    """A decoder architecture: what all its models have in common. Sizes and options are in `DecoderConfig`.

    Attributes:
        name: the family's name in messages and manifests.
        model_types: values of config.json's `model_type`.
        models: models of this family, for messages and documents.
        classes: classes of transformers whose computation this describes, the usual one first.
        blocks: module path of the list of decoder blocks.
        linears: compressed layers inside a block, in the method's processing order (docs/METHOD.md, section 8).
        query, key, value, output, gate, up, down: what each of them does; `gate` is "" where the feed-forward network
            has no gate.
        norm: "rms"; "rms_plus_one", whose weights are stored less one (Gemma); "layer", with mean and bias (OPT).
        attention_norm, feed_norm: norms before attention and before the feed-forward network.
        attention_out_norm, feed_out_norm: norms behind them, before the residual is added; "" where there are none.
        head_norms: queries and keys are normed a head at a time (`self_attn.q_norm`, `k_norm`).
        embedding, final_norm: module paths.
        positions: module path of a learned position table; "" where positions are rotary.
        position_offset: row of that table which holds position 0.
        float16: whether activations stay below float16's largest number, 65504. In Gemma-3-270M the residual reaches
            1.04e5 on the first 1024 tokens of WikiText-2's test split (weights dequantised from GGUF).
    """

    name: str
    model_types: tuple[str, ...]
    models: str
    classes: tuple[str, ...]
    blocks: str = "model.layers"
    linears: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "self_attn.k_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    norm: str = "rms"
    attention_norm: str = "input_layernorm"
    feed_norm: str = "post_attention_layernorm"
    attention_out_norm: str = ""
    feed_out_norm: str = ""
    head_norms: bool = False
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    positions: str = ""
    position_offset: int = 0
    float16: bool = True

    @property
    def last_linear(self) -> str:
        """The layer whose output importances weigh the block loss (docs/METHOD.md, section 6)."""
        return self.down

    @property
    def block_norms(self) -> tuple[str, ...]:
        """Norms of a block, over the hidden channels."""
        every = (self.attention_norm, self.attention_out_norm, self.feed_norm, self.feed_out_norm)
        return tuple(name for name in every if name)

    def layer_names(self, blocks: int) -> list[str]:
        """Full module names of all compressed layers of a model with `blocks` blocks, in processing order."""
        return [f"{self.blocks}.{block}.{linear}" for block in range(blocks) for linear in self.linears]


_GEMMA = {
    "float16": False,
    "norm": "rms_plus_one",
    "attention_out_norm": "post_attention_layernorm",
    "feed_norm": "pre_feedforward_layernorm",
    "feed_out_norm": "post_feedforward_layernorm",
}

# Module names and block structure: the modeling files of transformers 5.23 (models/llama, mistral, ... /modeling_*.py).
FAMILIES = (
    Family("llama", ("llama",), "Llama, SmolLM2, TinyLlama", ("LlamaForCausalLM",)),
    # Where config.json has layer_types, transformers makes a Ministral of a Mistral.
    Family("mistral", ("mistral",), "Mistral", ("MistralForCausalLM", "MinistralForCausalLM")),
    Family("qwen2", ("qwen2",), "Qwen2, Qwen2.5", ("Qwen2ForCausalLM",)),
    Family("qwen3", ("qwen3",), "Qwen3", ("Qwen3ForCausalLM",), head_norms=True),
    Family("gemma2", ("gemma2",), "Gemma-2", ("Gemma2ForCausalLM",), **_GEMMA),  # type: ignore[arg-type]
    Family(
        "gemma3",
        ("gemma3_text",),
        "Gemma-3 text",
        ("Gemma3ForCausalLM",),
        head_norms=True,
        **_GEMMA,  # type: ignore[arg-type]
    ),
    Family(
        "opt",
        ("opt",),
        "OPT",
        ("OPTForCausalLM",),
        blocks="model.decoder.layers",
        linears=(
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "self_attn.k_proj",
            "fc1",
            "fc2",
        ),
        output="self_attn.out_proj",
        gate="",
        up="fc1",
        down="fc2",
        norm="layer",
        attention_norm="self_attn_layer_norm",
        feed_norm="final_layer_norm",
        embedding="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
        position_offset=2,
    ),
)

#: Why some well-known architectures are not among them.
_REFUSED = {
    "gemma3": "it has a vision tower; its text-only models have model_type gemma3_text",
    "mixtral": "mixtures of experts are not supported",
    "qwen2_moe": "mixtures of experts are not supported",
    "qwen3_moe": "mixtures of experts are not supported",
    "gpt_oss": "mixtures of experts are not supported",
    "mamba": "state-space models are not supported",
    "mamba2": "state-space models are not supported",
    "falcon_mamba": "state-space models are not supported",
    "gemma": "only Gemma-2 and Gemma-3 are",
    "phi3": "its query, key and value projections are one layer",
}


def family_named(name: str) -> Family:
    """The family of that name; `DecoderConfig.family` always is one."""
    return next(family for family in FAMILIES if family.name == name)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json object.

    Raises:
        NqEdgeError: NQ-ARCH when the architecture is not supported; the message lists what is.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    works = "; ".join(f"{', '.join(family.model_types)} ({family.models})" for family in FAMILIES)
    reason = _REFUSED.get(model_type, "") if isinstance(model_type, str) else ""
    raise NqEdgeError(
        "NQ-ARCH",
        f"architecture {model_type!r} is not supported{': ' + reason if reason else ''}.",
        f"Supported model types: {works}.",
    )
