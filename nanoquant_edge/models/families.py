# SPDX-License-Identifier: Apache-2.0
"""Which architectures are supported, and which of their layers are compressed, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NqEdgeError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """A decoder architecture.

    Attributes:
        name: the family's name in messages and manifests.
        model_types: values of config.json's `model_type`.
        blocks: module path of the list of decoder blocks.
        linears: compressed layers inside a block, in the method's processing order (method section 3).
        last_linear: the layer whose output importances weigh the block loss (method section 5).
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    linears: tuple[str, ...]
    last_linear: str

    def layer_names(self, blocks: int) -> list[str]:
        """Full module names of all compressed layers of a model with `blocks` blocks, in processing order."""
        return [f"{self.blocks}.{block}.{linear}" for block in range(blocks) for linear in self.linears]


FAMILIES = (
    Family(
        name="llama",
        model_types=("llama",),
        blocks="model.layers",
        linears=(
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "self_attn.k_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
        last_linear="mlp.down_proj",
    ),
)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json object.

    Raises:
        NqEdgeError: NQ-ARCH when the architecture is not supported; the message lists what is.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    works = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise NqEdgeError(
        "NQ-ARCH",
        f"architecture {model_type!r} is not supported.",
        f"Supported model types: {works} (Llama, SmolLM2, TinyLlama and others of that shape).",
    )
