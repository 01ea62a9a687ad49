# SPDX-License-Identifier: Apache-2.0
"""What is left out of a recipe for want of memory."""

from __future__ import annotations

import torch

from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.preparation import affordable_recipe

CPU = torch.device("cpu")
LINEARS = {"a": torch.nn.Linear(8, 6)}
CURVED, PLAIN = Recipe(curvature=True), Recipe()


def test_curvature_is_left_out_where_there_is_no_room() -> None:
    assert affordable_recipe(CURVED, LINEARS, streamed=False, device=CPU) == (CURVED, [])
    recipe, left_out = affordable_recipe(CURVED, LINEARS, streamed=False, device=CPU, free_memory=100)
    assert recipe == PLAIN
    assert left_out == ["curvature, for want of memory (curvature keeps 0.0 GB on the host, where 0.0 GB may be taken)"]


def test_curvature_is_left_out_where_weights_are_streamed() -> None:
    recipe, left_out = affordable_recipe(CURVED, LINEARS, streamed=True, device=CPU)
    assert recipe == PLAIN
    assert "streamed" in left_out[0]
    assert affordable_recipe(PLAIN, LINEARS, streamed=True, device=CPU) == (PLAIN, [])
