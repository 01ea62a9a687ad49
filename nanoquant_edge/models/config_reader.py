# SPDX-License-Identifier: Apache-2.0
"""config.json -> `DecoderConfig`, one short function a family; every number is checked.

Defaults are those of transformers 5.24 (models/*/configuration_*.py): a config.json leaves out what equals them. What
is read here is compared with transformers' own reading when a model is loaded (`agreement.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import NqEdgeError
from .config import DecoderConfig
from .families import family_of
from .rope_parameters import read_rotary, read_rotary_by_kind

__all__ = ["read_config"]

#: No published model comes near; a config beyond it is damaged or hostile.
_LARGEST = 1 << 24
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_tanh", "gelu_new")


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a config.json object.

    Raises:
        NqEdgeError: NQ-ARCH for an unknown architecture or a feature of it that is not supported; NQ-MODEL for a
            number that is missing or impossible.

    Example:
        >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
        >>> read_config({"model_type": "llama", "vocab_size": 320, **sizes}).head_dim
        16
    """
    return _READERS[family_of(config).name](_Fields(config))


class _Fields:
    """Checked access to config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.family = family_of(config).name

    def size(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _LARGEST:
            raise NqEdgeError("NQ-MODEL", f"config.json has {name} = {value!r}, which is not a usable size.")
        return value

    def window(self) -> int:
        """Length of the sliding window: 4096 where the field is missing, as in transformers, and 0 where it is null."""
        return 0 if self.config.get("sliding_window", 4096) is None else self.size("sliding_window", 4096)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.config.get(name)
        return default if value is None else bool(value)

    def number(self, name: str, default: float | None = None) -> float | None:
        """A positive number; None where it is null, or missing without a default."""
        value = self.config.get(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise NqEdgeError("NQ-MODEL", f"config.json has {name} = {value!r}, which is not a positive number.")
        return float(value)

    def refuse(self, message: str) -> NqEdgeError:
        return NqEdgeError("NQ-ARCH", f"{message} is not supported for {self.family}.")

    def activation(self, name: str, usual: str, supported: Mapping[str, str]) -> str:
        value = self.config.get(name) or usual
        if not isinstance(value, str) or value not in supported:
            raise NqEdgeError(
                "NQ-ARCH", f"activation {value!r} is not supported for {self.family}; {', '.join(supported)} is."
            )
        return supported[value]


def _llama(fields: _Fields, positions: int = 2048, head_dim: int | None = None, kv_heads: int | None = None) -> Any:
    """Llama, and what the others have in common with it.

    Args:
        fields: config.json.
        positions, head_dim: the family's defaults.
        kv_heads: the family's default where the field is missing; where it is null, all heads have their own.
    """
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    missing = "num_key_value_heads" not in fields.config
    kv_heads = fields.size("num_key_value_heads", kv_heads if missing and kv_heads else heads)
    if heads % kv_heads:
        raise NqEdgeError("NQ-MODEL", f"{heads} attention heads are not a multiple of {kv_heads} key/value heads.")
    head_dim = fields.size("head_dim", head_dim or max(1, hidden // heads))
    if head_dim % 2:
        raise NqEdgeError("NQ-MODEL", f"head_dim {head_dim} is odd; rotary embedding needs pairs.")
    epsilon = fields.config.get("rms_norm_eps", 1e-6)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise NqEdgeError("NQ-MODEL", f"config.json has rms_norm_eps = {epsilon!r}.")
    gemma, positions = fields.family.startswith("gemma"), fields.size("max_position_embeddings", positions)
    bias = fields.flag("attention_bias") if fields.family not in ("mistral", "qwen2") else False
    return DecoderConfig(
        family=fields.family,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        norm_eps=epsilon,
        rotary=None if fields.family == "gemma3" else read_rotary(fields.config, positions),
        tied=fields.flag("tie_word_embeddings", gemma),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias") if fields.family == "llama" else False,
        activation="gelu_tanh" if gemma else fields.activation("hidden_act", "silu", {"silu": "silu"}),
    )


def _mistral(fields: _Fields) -> DecoderConfig:
    base: DecoderConfig = _llama(fields, positions=131072, kv_heads=8)
    # Where layer_types is there, transformers makes a Ministral of the model, whose blocks are local where it says so.
    window = fields.window()
    return _windowed(fields, base, window, [bool(window)] * base.num_layers)


def _qwen2(fields: _Fields) -> DecoderConfig:
    return replace(_windowed_qwen(fields, _llama(fields, positions=32768, kv_heads=32)), attention_bias=True)


def _qwen3(fields: _Fields) -> DecoderConfig:
    return _windowed_qwen(fields, _llama(fields, positions=32768, head_dim=128, kv_heads=32))


def _windowed_qwen(fields: _Fields, base: DecoderConfig) -> DecoderConfig:
    """Qwen's last blocks are local when `use_sliding_window` is set; published models do not set it."""
    window = fields.window() if fields.flag("use_sliding_window") else 0
    first = fields.config.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise NqEdgeError("NQ-MODEL", f"config.json has max_window_layers = {first!r}.")
    return _windowed(fields, base, window, [bool(window) and block >= first for block in range(base.num_layers)])


def _gemma2(fields: _Fields) -> DecoderConfig:
    base = _gemma(fields, _llama(fields, positions=8192, head_dim=256, kv_heads=4), every=2)
    cap, logit_cap = fields.number("attn_logit_softcapping", 50.0), fields.number("final_logit_softcapping", 30.0)
    return replace(base, attention_cap=cap, logit_cap=logit_cap)


def _gemma3(fields: _Fields) -> DecoderConfig:
    every = fields.size("sliding_window_pattern", 6)
    base = _gemma(fields, _llama(fields, positions=131072, head_dim=256, kv_heads=4), every)
    if fields.number("attn_logit_softcapping") is not None:
        raise fields.refuse("soft-capping of attention scores")
    rotary, local_rotary = read_rotary_by_kind(fields.config, base.max_positions)
    return replace(base, logit_cap=fields.number("final_logit_softcapping"), rotary=rotary, local_rotary=local_rotary)


def _gemma(fields: _Fields, base: DecoderConfig, every: int) -> DecoderConfig:
    """What Gemma-2 and Gemma-3 have in common; where layer_types is silent, one of `every` blocks is not local."""
    if fields.flag("use_bidirectional_attention"):
        raise fields.refuse("bidirectional attention")
    activation = fields.activation("hidden_activation", _GELU_TANH[0], dict.fromkeys(_GELU_TANH, "gelu_tanh"))
    usual = [bool((block + 1) % every) for block in range(base.num_layers)]
    base = replace(
        base,
        activation=activation,
        query_scale=fields.number("query_pre_attn_scalar", 256.0),
        embedding_scale=math.sqrt(base.hidden_size),
    )
    return _windowed(fields, base, fields.window(), usual)


def _windowed(fields: _Fields, base: DecoderConfig, window: int, usual: list[bool]) -> DecoderConfig:
    """The decoder with local blocks where `layer_types` names them, or else where it is usual."""
    kinds = fields.config.get("layer_types")
    if kinds is None:
        local = tuple(usual)
    elif not isinstance(kinds, list) or len(kinds) != base.num_layers:
        raise NqEdgeError("NQ-MODEL", f"config.json has layer_types that are not a list of {base.num_layers} names.")
    else:
        strange = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        if strange:
            raise fields.refuse(f"layer type {strange[0]!r}")
        local = tuple(kind == "sliding_attention" for kind in kinds)
    if any(local) and not window:
        raise NqEdgeError("NQ-MODEL", "config.json has local attention layers and no sliding window.")
    return replace(base, window=window, local=local) if any(local) else base


def _opt(fields: _Fields) -> DecoderConfig:
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    if hidden % heads:
        raise NqEdgeError("NQ-MODEL", f"hidden_size {hidden} is not a multiple of {heads} attention heads.")
    if not fields.flag("do_layer_norm_before", True) or fields.flag("_remove_final_layer_norm"):
        raise fields.refuse("a layer norm behind each sublayer (do_layer_norm_before = false, as in OPT-350M)")
    width = fields.size("word_embed_proj_dim", hidden)
    if width != hidden:
        raise fields.refuse(f"word_embed_proj_dim {width} beside hidden_size {hidden}")
    if not fields.flag("layer_norm_elementwise_affine", True):
        raise fields.refuse("a layer norm without weights")
    bias = fields.flag("enable_bias", True)
    return DecoderConfig(
        family=fields.family,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("ffn_dim", 3072),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=fields.size("max_position_embeddings", 2048),
        norm_eps=1e-5,  # of torch.nn.LayerNorm; the config has no entry for it
        rotary=None,
        tied=fields.flag("tie_word_embeddings", True),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        activation=fields.activation("activation_function", "relu", {"relu": "relu"}),
    )


_READERS: dict[str, Callable[[_Fields], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "opt": _opt,
}
