# SPDX-License-Identifier: Apache-2.0
"""Compression with the blocks' weights on disk: the importances and the bytes that the loaded model gives."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from nanoquant_edge.compression import streaming
from nanoquant_edge.compression.importance import collect_importances
from nanoquant_edge.compression.streaming import gradient_pass_by_blocks
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from tests.compression.support import dense_folder, family_folder
from tests.families import FAMILY_CONFIGS


def layers_of(source: SourceModel) -> dict[str, torch.nn.Linear]:
    names = source.family.layer_names(source.decoder.num_layers)
    return {name: source.model.get_submodule(name) for name in names}


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_importances_by_blocks_are_those_of_the_whole_model(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    ids = torch.randint(3, 320, (4, 24), generator=torch.Generator().manual_seed(1))
    folder = family_folder(tmp_path / "m", name)
    with load_model(folder, stream=True) as streamed, load_model(folder) as resident:
        run = functools.partial(gradient_pass_by_blocks, streamed)
        ours = collect_importances(streamed.model, layers_of(streamed), ids, 0.2, dtype=dtype, run=run)
        theirs = collect_importances(resident.model, layers_of(resident), ids, 0.2, dtype=dtype)
        # The same operations in the same order.
        for layer, expected in theirs.items():
            assert torch.equal(ours[layer].inputs, expected.inputs), layer
            assert torch.equal(ours[layer].outputs, expected.outputs), layer
        assert not any(layer._forward_hooks for layer in layers_of(streamed).values())


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 80])
def test_every_input_comes_in_its_turn(count: int, limit: int) -> None:
    steps: list[int] = []
    most = 0

    def forward(index: int, stream: torch.Tensor) -> torch.Tensor:
        steps.append(index)
        assert int(stream) == index
        return stream + 1

    inputs = streaming._Inputs(torch.zeros(()), forward, limit)
    for goal in reversed(range(count + 1)):
        assert int(inputs.of(goal)) == goal
        most = max(most, len(inputs._kept))
    assert most <= limit
    if limit == streaming.KEPT_STREAMS:
        assert len(steps) < 3 * count + 1
    elif limit == 1:
        assert len(steps) == count * (count + 1) // 2


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "m"), stream=True) as source:
        source.model.model.norm.weight.data.fill_(float("inf"))
        with pytest.raises(NqEdgeError, match="window 0 is") as caught:
            gradient_pass_by_blocks(source, torch.arange(16)[None])
        assert caught.value.code == "NQ-NUMERIC"
        assert all(parameter.is_meta for parameter in source.model.model.layers.parameters())
