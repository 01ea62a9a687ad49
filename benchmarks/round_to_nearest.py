# SPDX-License-Identifier: Apache-2.0
"""Plain round-to-nearest of a model's linear layers, the baseline beside compressed models.

Every 128 inputs of a row share a float16 scale and a float16 least value; codes run from 0 to 2^bits - 1. Nothing is
calibrated. Embedding and head stay float16, as in our checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["GROUP", "rounded", "rounded_layers", "stored_bits"]

GROUP = 128


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight (m, n) after rounding to 2^bits levels between the least and the largest of each group of a row."""
    m, n = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -n % GROUP), mode="replicate" if n > 1 else "constant")
    groups = padded.view(m, -1, GROUP)
    least = groups.amin(-1, keepdim=True).half().float()
    scale = ((groups.amax(-1, keepdim=True) - least) / (2**bits - 1)).half().float()
    codes = ((groups - least) / scale.clamp_min(1e-12)).round().clamp(0, 2**bits - 1)
    return (codes * scale + least).view(m, -1)[:, :n].to(weight.dtype)


def stored_bits(shape: tuple[int, int], bits: int) -> int:
    """Bits of a rounded weight: codes, and two 16-bit numbers a group."""
    m, n = shape
    return m * n * bits + m * -(-n // GROUP) * 32


@contextlib.contextmanager
def rounded_layers(model: Any, names: list[str], bits: int) -> Iterator[None]:
    """A model whose layers of these names are rounded while the context lasts."""
    kept = {}
    with torch.no_grad():
        for name in names:
            weight = model.get_submodule(name).weight
            kept[name] = weight.detach().clone()
            weight.copy_(rounded(weight, bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                model.get_submodule(name).weight.copy_(value)
