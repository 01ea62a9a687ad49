# SPDX-License-Identifier: Apache-2.0
"""Passes of the dense model: what goes through together, and losses that are not finite."""

from __future__ import annotations

import pytest
import torch

from nanoquant_edge.compression.calibrate.gradients import affordable_windows
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.errors import NqEdgeError
from tests.compression.support import dense_llama, linears_of, short_run


@pytest.mark.parametrize(("free", "windows"), [(0.5, 1), (4, 1), (13, 3), (1000, 8)])
def test_a_quarter_of_a_gpu_s_free_memory_goes_to_windows(
    monkeypatch: pytest.MonkeyPatch, free: float, windows: int
) -> None:
    model = dense_llama()
    window = 4 * 64 * sum(layer.in_features + layer.out_features for layer in linears_of(model).values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (int(free * window), 10**12))
    assert affordable_windows(model, 64, torch.device("cuda")) == windows
    assert affordable_windows(model, 64, torch.device("cpu")) == 1


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = dense_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(NqEdgeError, match="window 0 is") as caught:
        collect_importances(model, linears_of(model), torch.arange(16)[None], short_run())
    assert caught.value.code == "NQ-NUMERIC"
    assert not any(layer._forward_hooks for layer in linears_of(model).values())
