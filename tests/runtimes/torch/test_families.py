# SPDX-License-Identifier: Apache-2.0
"""The PyTorch backend (its slow reference on the CPU) on the families that it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.runtimes.torch import TorchBackend
from nanoquant_edge.validation.dense import dense_model
from tests.families import family_config
from tests.tiny import tiny_checkpoint

CASES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "qwen3-bias": {"attention_bias": True},
    "mistral": {"sliding_window": None},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    config = family_config(name.partition("-")[0], **CASES[name])
    checkpoint = tiny_checkpoint(tmp_path / "c", seed=2, **config)
    ids = np.random.default_rng(0).integers(0, 320, (2, 21))
    with torch.no_grad():
        expected = dense_model(checkpoint.folder)(torch.from_numpy(ids)).logits.numpy()
    backend = TorchBackend.from_checkpoint(checkpoint.folder, device="cpu")
    everywhere = np.tile(np.arange(20), (2, 1))
    np.testing.assert_allclose(backend.forward(ids[:, :20], positions=everywhere), expected[:, :20], atol=2e-4)
    np.testing.assert_allclose(backend.forward(ids[:, 20:])[:, 0], expected[:, 20], atol=2e-4)
