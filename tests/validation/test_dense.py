# SPDX-License-Identifier: Apache-2.0
"""The independent unpacker and the package's own agree, and do not share code."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.validation import dense
from tests.tiny import random_layer, tiny_checkpoint


@pytest.mark.parametrize(("m", "n", "rank", "mid"), [(1, 1, 1, False), (33, 31, 64, True), (20, 65, 7, False)])
def test_dense_weight(m: int, n: int, rank: int, mid: bool) -> None:
    layer = random_layer(np.random.default_rng(0), m, n, rank, mid=mid)
    parts = ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid")
    tensors = {
        part: torch.from_numpy(np.array(getattr(layer, part))) for part in parts if getattr(layer, part) is not None
    }
    found = dense.dense_weight(tensors, rank)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), layer.dense().astype(np.float32))


def test_dense_weight_by_hand() -> None:
    tensors = {
        "u_packed": torch.tensor([[2], [3]], dtype=torch.int32),
        "v_packed": torch.tensor([[1], [6]], dtype=torch.int32),
        "scale_out": torch.tensor([0.5, 2.0]),
        "scale_in": torch.tensor([1.0, 2.0, 4.0]),
    }
    assert dense.dense_weight(tensors, 2).tolist() == [[-1, 2, 4], [0, 0, 0]]


def test_nothing_is_shared_with_the_packing() -> None:
    source = inspect.getsource(dense)
    for name in ("from ..formats", "import pack", "NanoQuantLinear(", "unpackbits", "packbits"):
        assert name not in source


def test_model_holds_float32_weights_and_tied_head(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    model = dense.dense_model(tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training


def test_a_configuration_that_is_read_in_two_ways_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(tmp_path / "model")
    ours = dense.read_config
    monkeypatch.setattr(dense, "read_config", lambda config: replace(ours(config), norm_eps=1e-3))
    with pytest.raises(NqEdgeError, match="read in two ways") as caught:
        dense.dense_model(tmp_path / "model")
    assert caught.value.code == "NQ-MODEL"
