# SPDX-License-Identifier: Apache-2.0
"""What a single compressed layer does to the dense model's predictions: it is put in the place of the dense one.

The weighted error of a layer is an estimate from gradients at the dense model. It knows nothing of what later layers
repair or amplify, which the whole model's output does (arelath's experiment 022, docs/METHOD.md, section 11).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.source import SourceModel
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, distillation_loss
from ..run import Run

__all__ = ["SplicedModel"]

#: Windows that divergences are measured on, and those that go through the model together.
_WINDOWS, _AT_ONCE = 8, 4


class SplicedModel:
    """The dense model, its last states on a few windows, and the divergence to it with one layer changed.

    Args:
        source: the dense model, in memory, on its device.
        windows: int64 (windows, length); the first eight are used.
        run: its compute type is that of the passes.
    """

    def __init__(self, source: SourceModel, windows: Tensor, run: Run) -> None:
        self._model, self._run = source.model, run
        self._head = Head.of(source.model, run.dtype)
        self._windows = windows[:_WINDOWS].to(self._head.weight.device).split(_AT_ONCE)
        self._states = [self._last_states(ids) for ids in self._windows]

    @torch.no_grad()
    def _last_states(self, ids: Tensor) -> Tensor:
        with compute_in(self._run.dtype, ids.device):
            states: Tensor = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states.flatten(0, 1).to(self._run.dtype)

    @torch.no_grad()
    def divergence(self, name: str, weight: Tensor) -> float:
        """Mean KL (dense || changed) in nats with another weight (m, n) in the layer `name`, which is then put back."""
        layer = self._model.get_submodule(name)
        dense = layer.weight.data
        try:
            layer.weight.data = weight.to(dense)
            parts = [
                distillation_loss(self._last_states(ids), states, self._head, backward=False) * len(ids)
                for ids, states in zip(self._windows, self._states, strict=True)
            ]
        finally:
            layer.weight.data = dense
        return float(torch.stack(parts).sum()) / sum(map(len, self._windows))
