# SPDX-License-Identifier: Apache-2.0
"""The numbers of a decoder that graph builders and the compression need, read from a Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NqEdgeError
from .families import family_of

__all__ = ["DecoderConfig", "RotaryConfig"]

#: No published model comes near; a config beyond it is damaged or hostile.
_LARGEST = 1 << 24


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding (RoFormer section 3.2; `llama3` scaling as Llama 3.1's config defines it).

    Attributes:
        theta: base of the geometric frequencies.
        kind: "default", "linear" or "llama3".
        factor, low_freq_factor, high_freq_factor, original_length: parameters of the scaling; unused by "default".
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a Llama-family decoder.

    Attributes:
        family: name in `models.families`.
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: sizes.
        max_positions: longest sequence the rotary tables are meant for.
        norm_eps: epsilon of RMSNorm.
        rotary: position embedding.
        tied: the output head is the embedding table.
        attention_bias, mlp_bias: linear layers carry a bias.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rotary: RotaryConfig
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a config.json object.

        Raises:
            NqEdgeError: NQ-ARCH for an unknown architecture or a feature of it that is not supported;
                NQ-MODEL for a number that is missing or impossible.
        """
        family = family_of(config)

        def size(name: str, default: int | None = None) -> int:
            value = config.get(name)
            value = default if value is None else value
            if type(value) is not int or not 0 < value < _LARGEST:
                raise NqEdgeError("NQ-MODEL", f"config.json has {name} = {value!r}, which is not a usable size.")
            return value

        heads = size("num_attention_heads")
        hidden = size("hidden_size")
        kv_heads = size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise NqEdgeError("NQ-MODEL", f"{heads} attention heads are not a multiple of {kv_heads} key/value heads.")
        head_dim = size("head_dim", max(1, hidden // heads))
        if head_dim % 2:
            raise NqEdgeError("NQ-MODEL", f"head_dim {head_dim} is odd; rotary embedding needs pairs.")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise NqEdgeError("NQ-ARCH", f"activation {activation!r} is not supported for {family.name}; only silu is.")
        epsilon = config.get("rms_norm_eps", 1e-6)
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise NqEdgeError("NQ-MODEL", f"config.json has rms_norm_eps = {epsilon!r}.")
        return cls(
            family=family.name,
            vocab_size=size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size"),
            num_layers=size("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=size("max_position_embeddings", 2048),
            norm_eps=epsilon,
            rotary=_rotary(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
        )


def _rotary(config: Mapping[str, Any]) -> RotaryConfig:
    # transformers 5 writes rope_parameters; older configs have rope_theta beside an optional rope_scaling.
    entry: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name) or {}
        if not isinstance(value, Mapping):
            raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters {name} = {value!r}, not an object.")
        entry.update(value)
    theta = entry.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise NqEdgeError("NQ-ARCH", f"rope type {kind!r} is not supported; default, linear and llama3 are.")
    try:
        share = float(entry.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0)
        rotary = RotaryConfig(
            theta=float(theta),
            kind=kind,
            factor=float(entry.get("factor", 1.0)),
            low_freq_factor=float(entry.get("low_freq_factor", 1.0)),
            high_freq_factor=float(entry.get("high_freq_factor", 4.0)),
            original_length=int(entry.get("original_max_position_embeddings", 8192)),
        )
    except (TypeError, ValueError) as error:
        raise NqEdgeError("NQ-MODEL", f"config.json has rotary parameters that are not numbers ({error}).") from error
    if share != 1.0:
        raise NqEdgeError("NQ-ARCH", "partial rotary embedding is not supported.")
    if not (math.isfinite(rotary.theta) and rotary.theta > 0 and math.isfinite(rotary.factor) and rotary.factor > 0):
        raise NqEdgeError("NQ-MODEL", "config.json has rotary parameters that are not positive.")
    return rotary
