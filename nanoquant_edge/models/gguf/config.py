# SPDX-License-Identifier: Apache-2.0
"""The fields of a GGUF file -> config.json content; a field that changes the computation and is not read is refused.

Keys and defaults are those of llama.cpp (src/llama-arch.cpp, src/llama-model.cpp); those of a family's name, such as
`llama.block_count`, stand here without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import NqEdgeError
from ..families import family_of
from .content import MODEL_TYPES, GgufContent
from .rope_factors import read_llama3_factors

__all__ = ["read_gguf_config"]

#: Fields that are read below.
_READ = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.key_length_swa",
    "attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.value_length", "attention.value_length_swa", "attn_logit_softcapping", "block_count", "context_length",
    "embedding_length", "feed_forward_length", "final_logit_softcapping", "rope.dimension_count",
    "rope.dimension_count_swa", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.type", "vocab_size",
}  # fmt: skip
#: Fields that change nothing, or nothing where positions are not scaled by YaRN, which is refused.
_WITHOUT_EFFECT = {
    "attention.layer_norm_epsilon", "rope.scaling.finetuned", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier", "tensor_data_layout",
}  # fmt: skip
#: Fields that are let through where they say what is so anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "use_parallel_residual": (False,),
}
_HINT = "Use the Hugging Face folder."


def read_gguf_config(content: GgufContent) -> dict[str, Any]:
    """The configuration of a file's model, without its token ids.

    Raises:
        NqEdgeError: NQ-ARCH for a field that changes the computation and is not read; NQ-MODEL when a field is missing
            or impossible.
    """
    return _Fields(content).config()


class _Fields:
    """The fields of a file's architecture, by their names without it."""

    def __init__(self, content: GgufContent) -> None:
        self.content, self.architecture = content, content.architecture

    def get(self, key: str) -> Any:
        return self.content.get(f"{self.architecture}.{key}")

    def refuse(self, what: str) -> NqEdgeError:
        return NqEdgeError("NQ-ARCH", f"{self.content.path} {what}, which is not read from GGUF.", _HINT)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number; of a list with one for each block, the one that all have."""
        value = self.get(key)
        if isinstance(value, list):
            if len(set(map(str, value))) != 1:
                raise self.refuse(f"has another {key} in some blocks")
            value = value[0]
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise NqEdgeError("NQ-MODEL", f"{self.content.path} has {self.architecture}.{key} = {value!r}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as it is written shortest: files hold them in 32 bits."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NqEdgeError("NQ-MODEL", f"{self.content.path} has {self.architecture}.{key} = {value!r}.")
        return float(str(np.float32(value)))

    def same(self, keys: Iterable[str], expected: int, what: str) -> None:
        for key in keys:
            if self.get(key) is not None and self.size(key) != expected:
                raise self.refuse(f"has {self.architecture}.{key} = {self.size(key)} beside {what} {expected}")

    def check_known(self) -> None:
        prefix = f"{self.architecture}."
        for key in self.content.keys:
            name = key.removeprefix(prefix)
            if name == key or name in _READ or name in _WITHOUT_EFFECT:
                continue
            value = self.content.get(key)
            if name not in _HARMLESS or isinstance(value, list) or value not in _HARMLESS[name]:
                shown = value if not isinstance(value, list) else f"a list of {len(value)}"
                raise self.refuse(f"has {key[:200]} = {str(shown)[:80]!r}")

    def config(self) -> dict[str, Any]:
        self.check_known()
        tensors, gemma = self.content.tensors, self.architecture.startswith("gemma")
        table = tensors.get("token_embd.weight")
        if table is None or len(table.shape) != 2:
            raise NqEdgeError("NQ-MODEL", f"{self.content.path} lacks the tensor token_embd.weight.")
        hidden, heads = self.size("embedding_length"), self.size("attention.head_count")
        if not heads:
            raise NqEdgeError("NQ-MODEL", f"{self.content.path} has {self.architecture}.attention.head_count = 0.")
        # The whole of a head is rotated in all of these architectures.
        head_dim = self.size("attention.key_length", self.size("rope.dimension_count", hidden // heads))
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            self.same((key, f"{key}_swa"), head_dim, "heads of width")
        self.same(("vocab_size",), table.shape[0], "a table of")
        config = {
            "architectures": [family_of({"model_type": MODEL_TYPES[self.architecture]}).classes[0]],
            "model_type": MODEL_TYPES[self.architecture],
            "vocab_size": table.shape[0],
            "hidden_size": hidden,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "hidden_activation" if gemma else "hidden_act": "gelu_pytorch_tanh" if gemma else "silu",
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "rope_parameters": self.rotary(head_dim),
            "tie_word_embeddings": "output.weight" not in tensors,
            "dtype": "float32",
        }
        if self.architecture != "qwen2":  # whose attention always has biases
            config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        if self.architecture == "llama":
            config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
        return {**config, **(self.gemma(config) if gemma else self.without_window(config))}

    def without_window(self, config: dict[str, Any]) -> dict[str, Any]:
        """Llama and Qwen have neither caps nor windows in this format."""
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if self.number(key, 0.0):
                raise self.refuse(f"has {self.architecture}.{key}")
        if 0 < self.size("attention.sliding_window", 0) < config["max_position_embeddings"]:
            raise self.refuse("has a sliding window")
        return {}

    def gemma(self, config: dict[str, Any]) -> dict[str, Any]:
        """Caps, windows and the scale of queries; the largest models scale by hidden_size / heads."""
        two, blocks = self.architecture == "gemma2", config["num_hidden_layers"]
        large = blocks == (46 if two else 62)
        found: dict[str, Any] = {
            "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
            if large
            else config["head_dim"],
            "attn_logit_softcapping": self.number("attn_logit_softcapping", 50.0 if two else 0.0) or None,
            "final_logit_softcapping": self.number("final_logit_softcapping", 30.0 if two else 0.0) or None,
        }
        window = self.size("attention.sliding_window", 4096 if two else 0)
        local = self.local_blocks(blocks, 2 if two else 6) if window else [False] * blocks
        found["layer_types"] = ["sliding_attention" if one else "full_attention" for one in local]
        return {**found, "sliding_window": window} if window else found

    def local_blocks(self, blocks: int, period: int) -> list[bool]:
        """Which blocks have a window: all but each last one of a period, or those that the file lists."""
        pattern = self.get("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            if len(pattern) != blocks:
                raise NqEdgeError(
                    "NQ-MODEL", f"{self.content.path} has a pattern of windows for {len(pattern)} blocks."
                )
            return [bool(one) for one in pattern]
        period = self.size("attention.sliding_window_pattern", period)
        return [bool(period == 0 or (block + 1) % period) for block in range(blocks)]

    def rotary(self, head_dim: int) -> dict[str, Any]:
        """`rope_parameters`. A factor without a type is linear scaling, as llama.cpp reads it; its older key counts."""
        kind = self.get("rope.scaling.type")
        kind = "linear" if kind is None else kind
        if kind not in ("none", "linear"):
            raise self.refuse(f"scales its rotary positions by {kind!r}")
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0)) if kind == "linear" else 0.0
        found: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", 1e4), "rope_type": "default"}
        if factor not in (0.0, 1.0):
            found |= {"rope_type": "linear", "factor": factor}
        if "rope_freqs.weight" in self.content.tensors:
            if self.architecture != "llama" or found["rope_type"] != "default":
                raise self.refuse("has factors of rotary positions")
            length = self.size("rope.scaling.original_context_length", 8192)
            found |= read_llama3_factors(self.content, head_dim, found["rope_theta"], length)
        theta = found["rope_theta"]
        if self.architecture == "gemma2" and self.number("rope.freq_base_swa", theta) != theta:
            raise self.refuse("has another base of rotary positions in some blocks")
        if self.architecture != "gemma3":
            return found
        local = {"rope_theta": self.number("rope.freq_base_swa", 1e4), "rope_type": "default"}
        return {"full_attention": found, "sliding_attention": local}
