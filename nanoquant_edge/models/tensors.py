# SPDX-License-Identifier: Apache-2.0
"""The source model's tensors: which are compressed, which are stored as they are, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import NqEdgeError

__all__ = ["embedding_name", "finite", "linear_at", "uncompressed_tensors"]


def linear_at(model: Any, name: str) -> nn.Linear:
    """The linear layer of a name.

    Raises:
        NqEdgeError: NQ-ARCH when it is something else.
    """
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise NqEdgeError("NQ-ARCH", f"{name} is a {type(layer).__name__}, not a linear layer.")
    return layer


def finite(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Pass a model's weights on; raises NQ-NUMERIC, naming the weight, when one holds NaN or infinity."""
    for name, value in weights:
        if not bool(torch.isfinite(value).all()):
            raise NqEdgeError("NQ-NUMERIC", f"the weight {name} of the source model holds NaN or infinity.")
        yield name, value


def embedding_name(model: Any) -> str:
    """Parameter name of the embedding table."""
    table = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is table)


def uncompressed_tensors(weights: Iterable[tuple[str, Tensor]], tied: bool) -> dict[str, NDArray[np.generic]]:
    """What is stored as it is: tables in float16, vectors (norms) in float32.

    Args:
        weights: names and values of the dense model's parameters, without those of the compressed layers.
        tied: the head is the embedding table and stored once.

    Raises:
        NqEdgeError: NQ-NUMERIC when a table does not fit float16.
    """
    found: dict[str, NDArray[np.generic]] = {}
    for name, parameter in weights:
        if tied and name == "lm_head.weight":
            continue
        value = parameter.detach().float().cpu()
        if value.ndim > 1:
            if float(value.abs().max()) > torch.finfo(torch.float16).max:
                raise NqEdgeError("NQ-NUMERIC", f"{name} does not fit float16.")
            value = value.half()
        found[name] = value.numpy()
    return found
