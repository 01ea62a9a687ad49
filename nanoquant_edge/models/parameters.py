# SPDX-License-Identifier: Apache-2.0
"""Which stored tensor each parameter of a model is: every parameter has one, and every tensor is accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NqEdgeError
from .config import DecoderConfig
from .families import Family
from .rotary import frequencies
from .stored_tensors import StoredTensors

__all__ = ["HEAD", "ModelWeights", "has_own_head", "match_parameters"]

#: Parameter of the output head in every family.
HEAD = "lm_head.weight"
_FREQUENCIES = re.compile(r"(?:model\.)?(?:layers\.(\d{1,5})\.self_attn\.)?rotary_emb\.inv_freq")
#: Rounding of frequencies that old files hold in 16 bits.
_SIXTEEN_BITS = 1e-2


@dataclass(frozen=True)
class ModelWeights:
    """The parameters of a model in its files.

    Attributes:
        tensors: what the files hold.
        names: parameter of the model -> name in the files.
    """

    tensors: StoredTensors
    names: Mapping[str, str]

    def read(self, parameter: str, device: torch.device) -> Tensor:
        """A parameter as float32 on a device."""
        return self.tensors.read(self.names[parameter], device)


def has_own_head(tensors: StoredTensors, family: Family) -> bool:
    """Whether the files hold an output head that is not the embedding table; transformers then uses it.

    A configuration may say that both are one where the file holds two that differ, so the values are compared.
    """
    head, table = _stored(tensors, HEAD), _stored(tensors, f"{family.embedding}.weight")
    if head is None or table is None:
        return False
    if tensors.shape(head) != tensors.shape(table):
        return True
    for name in (head, table):
        tensors.check(name)
    device = torch.device("cpu")
    return not torch.equal(tensors.read(head, device), tensors.read(table, device))


def match_parameters(model: Any, tensors: StoredTensors, decoder: DecoderConfig, name: str) -> ModelWeights:
    """Find every parameter of a model among stored tensors, from names, shapes and types alone.

    Args:
        model: a transformers model without weights.
        tensors: what its files hold; a tied model's table may go by the head's name.
        decoder: its configuration.
        name: what to call the model in messages.

    Raises:
        NqEdgeError: NQ-MODEL when a parameter is missing or has another shape, when a tensor does not hold plain
            floating-point numbers, or when one is left that the model has no place for.
    """
    table, found, missing = f"{decoder.structure.embedding}.weight", dict[str, str](), list[str]()
    for parameter in dict(model.named_parameters()):
        stored = _stored(tensors, parameter)
        if stored is None and decoder.tied and parameter in (table, HEAD):
            stored = _stored(tensors, HEAD if parameter == table else table)
        if stored is None:
            missing.append(parameter)
        else:
            found[parameter] = stored
    if missing:
        raise NqEdgeError("NQ-MODEL", f"{name} lacks {len(missing)} tensors, the first is {min(missing)}.")
    used = {*found.values(), *(_double(tensors, decoder))}
    odd = sorted(stored for stored in tensors.names() if stored not in used)
    if odd:
        raise NqEdgeError(
            "NQ-MODEL",
            f"{name} holds {len(odd)} tensors that its configuration has no place for, the first is {odd[0][:200]}.",
            "Use the model as it was published: adapters must be merged, and quantized weights are not read.",
        )
    for parameter, stored in found.items():
        shape = tuple(model.get_parameter(parameter).shape)
        if tensors.shape(stored) != shape:
            raise NqEdgeError(
                "NQ-MODEL", f"{name} cannot be loaded: {stored} has shape {tensors.shape(stored)}, not {shape}."
            )
        tensors.check(stored)
    return ModelWeights(tensors, found)


def _stored(tensors: StoredTensors, parameter: str) -> str | None:
    """A parameter's name in the files: some models are saved without the first part, `model.`; None if absent."""
    return next((name for name in (parameter, parameter.removeprefix("model.")) if name in tensors.names()), None)


def _double(tensors: StoredTensors, decoder: DecoderConfig) -> list[str]:
    """Tensors that repeat what the configuration or another tensor says: a tied head, frequencies of positions."""
    head = _stored(tensors, HEAD)
    found = [head] if decoder.tied and head is not None else []
    for name in tensors.names():
        match = _FREQUENCIES.fullmatch(name)
        rotary = decoder.rotary_of(min(int(match[1] or 0), decoder.num_layers - 1)) if match else None
        if rotary is None:
            continue
        ours = frequencies(rotary, decoder.head_dim)
        if tensors.shape(name) == ours.shape:
            theirs = tensors.read(name, torch.device("cpu")).numpy()
            found += [name] if np.allclose(ours, theirs, rtol=_SIXTEEN_BITS, atol=0) else []
    return found
