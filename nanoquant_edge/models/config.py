# SPDX-License-Identifier: Apache-2.0
"""The numbers of a decoder that graph builders and the compression need; `config_reader` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from .families import Family, family_named

__all__ = ["DecoderConfig", "RotaryConfig"]


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
    """Sizes and options of a decoder; what its family fixes is in `Family`.

    Attributes:
        family: name in `models.families`.
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: sizes.
        max_positions: longest sequence the position tables are meant for.
        norm_eps: epsilon of all norms.
        rotary: position embedding; None where positions are learned.
        tied: the output head is the embedding table.
        attention_bias, output_bias, mlp_bias: q, k and v; the attention's output; and the feed-forward layers carry a
            bias.
        activation: "silu", "gelu_tanh" or "relu".
        query_scale: scores are multiplied by query_scale ** -0.5; None is head_dim.
        attention_cap, logit_cap: c of the soft cap c * tanh(x / c) on scores and on final logits; None is no cap.
        embedding_scale: factor of the embedded tokens.
        window: tokens that a position of a local block sees, itself included; 0 where all blocks see everything.
        local: one flag a block, whether it is local; () where none is.
        local_rotary: position embedding of local blocks where it differs; None where it does not.
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
    rotary: RotaryConfig | None
    tied: bool
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    query_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    window: int = 0
    local: tuple[bool, ...] = ()
    local_rotary: RotaryConfig | None = None

    @property
    def structure(self) -> Family:
        """What all models of this family have in common."""
        return family_named(self.family)

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores."""
        return float(self.query_scale or self.head_dim) ** -0.5

    def window_of(self, block: int, length: int | None = None) -> int:
        """Tokens that a position of a block sees, 0 for all of a context of `length` tokens."""
        limit = self.max_positions if length is None else length
        return self.window if self.local and self.local[block] and self.window < limit else 0

    def rotary_of(self, block: int) -> RotaryConfig | None:
        """Position embedding of a block."""
        local = bool(self.local) and self.local[block]
        return self.local_rotary if local and self.local_rotary is not None else self.rotary

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Compressed layer inside a block -> (out_features, in_features)."""
        family, hidden, ffn = self.structure, self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes = {
            family.query: (queries, hidden),
            family.key: (keys, hidden),
            family.value: (keys, hidden),
            family.output: (hidden, queries),
            family.gate: (ffn, hidden),
            family.up: (ffn, hidden),
            family.down: (hidden, ffn),
        }
        return {name: shape for name, shape in shapes.items() if name}

    def has_bias(self, linear: str) -> bool:
        """Whether a compressed layer, named inside its block, carries a bias."""
        family = self.structure
        if linear in (family.query, family.key, family.value):
            return self.attention_bias
        return self.output_bias if linear == family.output else self.mlp_bias

    def norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of all norms by Hugging Face name -> shape."""
        family, parts = self.structure, ("weight", "bias") if self.structure.norm == "layer" else ("weight",)
        widths = {family.final_norm: self.hidden_size}
        for block in range(self.num_layers):
            widths.update({f"{family.blocks}.{block}.{name}": self.hidden_size for name in family.block_norms})
            if family.head_norms:
                attention = f"{family.blocks}.{block}.self_attn"
                widths.update({f"{attention}.{name}": self.head_dim for name in ("q_norm", "k_norm")})
        return {f"{name}.{part}": (width,) for name, width in widths.items() for part in parts}
