# SPDX-License-Identifier: Apache-2.0
"""What a graph builder asks of its weights, and the check that they fit the configuration.

A `Checkpoint` is a weight source; anything else with these methods builds the same graph.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint import PackedLayer, QuantizedTable
from ..models import DecoderConfig

__all__ = ["HEAD", "MULTIPLIER", "WeightSource", "check_weights", "stored_name", "table_modules"]

#: Module path of a head that is not the embedding table.
HEAD = "lm_head"
#: Last part of the name under which a graph holds 1 + weight of a norm whose weight is stored less one.
MULTIPLIER = "multiplier"


class WeightSource(Protocol):
    """Named weights of one model."""

    def layer(self, name: str) -> PackedLayer:
        """Factors of the compressed linear layer with this module path."""
        ...

    def tensor(self, name: str) -> NDArray[np.generic]:
        """Any other tensor, by its Hugging Face name."""
        ...

    def table(self, module: str) -> QuantizedTable | None:
        """Codes and scales of an embedding or head with this module path; None when it is a plain tensor."""
        ...

    def tensor_names(self) -> list[str]:
        """Names of all tensors, those of compressed layers included (`….u_packed`)."""
        ...


def check_weights(config: DecoderConfig, weights: WeightSource) -> None:
    """Compare every shape with the configuration before anything is built.

    Raises:
        NqEdgeError: NQ-CKPT naming the first tensor that is missing or has another shape.
    """
    family, linears = config.structure, config.linear_shapes()
    names = set(weights.tensor_names())
    for name in family.layer_names(config.num_layers):
        if f"{name}.u_packed" not in names:
            raise NqEdgeError("NQ-CKPT", f"layer {name} is not in the checkpoint.")
        layer = weights.layer(name)
        _, _, linear = name.removeprefix(f"{family.blocks}.").partition(".")
        expected = linears[linear]
        if (layer.out_features, layer.in_features) != expected:
            found = (layer.out_features, layer.in_features)
            raise NqEdgeError("NQ-CKPT", f"layer {name} is {found}, the configuration says {expected}.")
        if (layer.bias is not None) != config.has_bias(linear):
            has, says = ("a", "none") if layer.bias is not None else ("no", "one")
            raise NqEdgeError("NQ-CKPT", f"layer {name} has {has} bias, the configuration says {says}.")
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {f"{family.embedding}.weight": table, **config.norm_shapes()}
    if not config.tied:
        shapes[f"{HEAD}.weight"] = table
    if family.positions:
        rows = config.max_positions + family.position_offset
        shapes[f"{family.positions}.weight"] = (rows, config.hidden_size)
    for name, shape in shapes.items():
        coded = weights.table(name.removesuffix(".weight"))
        if coded is not None and coded.shape == shape:
            continue
        stored = stored_name(name, names)
        if stored not in names:
            raise NqEdgeError("NQ-CKPT", f"the checkpoint has no tensor {name}.")
        if weights.tensor(stored).shape != shape:
            raise NqEdgeError("NQ-CKPT", f"{name} has shape {weights.tensor(stored).shape}, not {shape}.")


def stored_name(name: str, names: set[str]) -> str:
    """Under which name a source holds a norm's weight: exported graphs hold Gemma's with the one added."""
    multiplier = f"{name.removesuffix('.weight')}.{MULTIPLIER}"
    return multiplier if name not in names and multiplier in names else name


def table_modules(config: DecoderConfig) -> list[str]:
    """Module paths of the embedding and, where it is another table, the head."""
    embedding = config.structure.embedding
    return [embedding] if config.tied else [embedding, HEAD]
