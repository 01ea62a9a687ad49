# SPDX-License-Identifier: Apache-2.0
"""The source model's tensors: which are compressed, which are stored as they are, and whether they are sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import NqEdgeError

__all__ = ["embedding_name", "linear_at", "refuse_non_finite", "uncompressed_tensors"]


def linear_at(model: Any, name: str) -> nn.Linear:
    """The linear layer of a name.

    Raises:
        NqEdgeError: NQ-ARCH when it is something else.
    """
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise NqEdgeError("NQ-ARCH", f"{name} is a {type(layer).__name__}, not a linear layer.")
    return layer


def refuse_non_finite(model: Any) -> None:
    """Raises NQ-NUMERIC, naming the weight, when one holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NqEdgeError("NQ-NUMERIC", f"the weight {name} of the source model holds NaN or infinity.")


def embedding_name(model: Any) -> str:
    """Parameter name of the embedding table."""
    table = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is table)


def uncompressed_tensors(model: Any, compressed: list[str], tied: bool) -> dict[str, NDArray[np.generic]]:
    """What is stored as it is: tables in float16, vectors (norms) in float32.

    Args:
        model: the dense model.
        compressed: module names of the compressed layers.
        tied: the head is the embedding table and stored once.

    Raises:
        NqEdgeError: NQ-NUMERIC when a table does not fit float16.
    """
    skip = {f"{name}.{part}" for name in compressed for part in ("weight", "bias")}
    found: dict[str, NDArray[np.generic]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=not tied):
        if name in skip or (tied and name == "lm_head.weight"):
            continue
        value = parameter.detach().float().cpu()
        if value.ndim > 1:
            if float(value.abs().max()) > torch.finfo(torch.float16).max:
                raise NqEdgeError("NQ-NUMERIC", f"{name} does not fit float16.")
            value = value.half()
        found[name] = value.numpy()
    return found
