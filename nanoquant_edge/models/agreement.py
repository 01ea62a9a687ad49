# SPDX-License-Identifier: Apache-2.0
"""config.json is read twice: by `config_reader` for export and runtimes, by transformers for compression.

Both readings are compared when a model is loaded, fact by fact, on the modules that transformers made. A model that is
read in two ways would be compressed as one function and exported as another, and validation could not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import NqEdgeError
from .config import DecoderConfig
from .rotary import frequencies

__all__ = ["check_agreement", "disagreements"]

#: Both round in float32, in another order; at position 10,000 this moves an angle by 0.01.
_FREQUENCY_TOLERANCE = 1e-6
_PROBE = np.linspace(-6, 6, 49)


class Disagreement(NamedTuple):
    """One fact in both readings."""

    what: str
    ours: Any
    theirs: Any


def check_agreement(decoder: DecoderConfig, model: Any, name: str) -> None:
    """Refuse a model that this package and transformers read in two ways.

    Args:
        decoder: our reading.
        model: the transformers model; its weights may lie on the meta device.
        name: what to call the model in the message.

    Raises:
        NqEdgeError: NQ-MODEL, naming the first fact and both values.
    """
    for what, ours, theirs in disagreements(decoder, model):
        raise NqEdgeError(
            "NQ-MODEL",
            f"the configuration of {name} is read in two ways: {what} is {ours} here and {theirs} in transformers.",
            "Remove entries of config.json that contradict each other, or report the model.",
        )


def disagreements(decoder: DecoderConfig, model: Any) -> Iterator[Disagreement]:
    """The facts that our reading and transformers' model have otherwise, each with both values; none for a good model.

    Args:
        decoder: our reading.
        model: the transformers model.
    """
    classes = decoder.structure.classes
    if type(model).__name__ not in classes:
        yield Disagreement("the class", " or ".join(classes), type(model).__name__)
        return
    for what, ours, theirs in _facts(decoder, model):
        if ours != theirs:
            yield Disagreement(what, ours, theirs)


def _facts(decoder: DecoderConfig, model: Any) -> Iterator[Disagreement]:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    config = model.config
    ours, theirs = _shapes(decoder), {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name in sorted(ours.keys() | theirs.keys()):
        yield Disagreement(f"the shape of {name}", ours.get(name, "absent"), theirs.get(name, "absent"))
    yield Disagreement("whether head and embedding are one", decoder.tied, head.weight is table.weight)
    yield Disagreement("the longest context", decoder.max_positions, config.max_position_embeddings)
    scale = float(getattr(table, "scalar_embed_scale", 1.0))
    yield Disagreement("the embedding's scale", decoder.embedding_scale, scale)
    yield Disagreement("the cap of the logits", decoder.logit_cap, getattr(config, "final_logit_softcapping", None))
    if decoder.structure.positions:
        offset = model.get_submodule(decoder.structure.positions).offset
        yield Disagreement("the offset of positions", decoder.structure.position_offset, offset)
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm"):
            epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            yield Disagreement(f"the epsilon of {name}", decoder.norm_eps, epsilon)
    for index, block in enumerate(model.get_submodule(decoder.structure.blocks)):
        for what, our, their in _block_facts(decoder, model, index, block):
            yield Disagreement(f"{what} of block {index}", our, their)


def _shapes(decoder: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this configuration has, by name."""
    family, table = decoder.structure, (decoder.vocab_size, decoder.hidden_size)
    shapes = {**decoder.norm_shapes(), f"{family.embedding}.weight": table}
    if not decoder.tied:
        shapes["lm_head.weight"] = table
    if family.positions:
        shapes[f"{family.positions}.weight"] = (decoder.max_positions + family.position_offset, decoder.hidden_size)
    for block in range(decoder.num_layers):
        for linear, shape in decoder.linear_shapes().items():
            shapes[f"{family.blocks}.{block}.{linear}.weight"] = shape
            if decoder.has_bias(linear):
                shapes[f"{family.blocks}.{block}.{linear}.bias"] = shape[:1]
    return shapes


def _block_facts(decoder: DecoderConfig, model: Any, index: int, block: Any) -> Iterator[Disagreement]:
    attention = block.self_attn
    yield Disagreement("head_dim", decoder.head_dim, attention.head_dim)
    yield Disagreement("the attention's scale", decoder.attention_scale, attention.scaling)
    cap = getattr(attention, "attn_logit_softcapping", None)
    yield Disagreement("the cap of the scores", decoder.attention_cap, cap)
    yield Disagreement("whether attention is causal", True, attention.is_causal)
    yield Disagreement("the sliding window", _window(decoder, index), _their_window(model, index, attention))
    activation = block.activation_fn if decoder.family == "opt" else block.mlp.act_fn
    yield Disagreement("the activation", decoder.activation, _activation(activation))
    rotary = decoder.rotary_of(index)
    if rotary is None:
        return
    embedding = model.get_submodule(decoder.structure.blocks.rpartition(".")[0]).rotary_emb
    kind = f"{getattr(attention, 'layer_type', None)}_"  # Gemma-3 has frequencies for each kind of block
    kind = kind if hasattr(embedding, f"{kind}inv_freq") else ""
    ours = frequencies(rotary, decoder.head_dim)
    theirs = getattr(embedding, f"{kind}inv_freq").float().cpu().numpy()
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=_FREQUENCY_TOLERANCE, atol=0):
        yield Disagreement("the rotary embedding", rotary, _described(theirs, model.config.rope_parameters))
    yield Disagreement("the rotary embedding's scale", 1.0, getattr(embedding, f"{kind}attention_scaling"))


def _window(decoder: DecoderConfig, index: int) -> int:
    return decoder.window if decoder.local and decoder.local[index] else 0


def _their_window(model: Any, index: int, attention: Any) -> Any:
    """What the mask of a block lets it see: the configuration's, by the kind of the block where there are kinds."""
    if type(model).__name__ == "MistralForCausalLM":
        return model.config.sliding_window or 0
    if not hasattr(attention, "layer_type"):
        return 0
    local = model.config.layer_types[index] == "sliding_attention"
    window = (model.config.sliding_window or 0) if local else 0
    return window if window == (attention.sliding_window or 0) else (window, attention.sliding_window)


def _activation(function: nn.Module) -> str:
    """Our name of an activation, by what it computes."""
    found = function(torch.from_numpy(_PROBE)).numpy()
    gelu = 0.5 * _PROBE * (1 + np.tanh(np.sqrt(2 / np.pi) * (_PROBE + 0.044715 * _PROBE**3)))
    known = {"silu": _PROBE / (1 + np.exp(-_PROBE)), "gelu_tanh": gelu, "relu": np.maximum(_PROBE, 0)}
    return next((name for name, values in known.items() if np.allclose(found, values, atol=1e-9)), repr(function))


def _described(values: np.ndarray, parameters: Any) -> str:
    return f"{len(values)} frequencies from {values.max():g} to {values.min():g} ({parameters})"
