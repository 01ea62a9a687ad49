# SPDX-License-Identifier: Apache-2.0
"""Rotary tables equal transformers' to the last bits of float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nanoquant_edge.exporters.onnx.rotary import rotary_tables
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import llama_config

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **LLAMA3},
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, **LLAMA3},
    ],
)
def test_tables_equal_transformers(rope: dict[str, Any]) -> None:
    config = llama_config(rope_parameters=rope, head_dim=64, max_position_embeddings=4096)
    cosines, sines = rotary_tables(read_config(config).rotary, 64, 4096)
    module = LlamaRotaryEmbedding(LlamaConfig(**config))
    expected = module(torch.zeros(1, 1, 1), torch.arange(4096)[None])
    for found, reference in zip((cosines, sines), expected, strict=True):
        assert found.dtype == np.float32 and found.shape == (4096, 32)
        error = np.abs(found - reference[0, :, :32].numpy())
        # One unit in the last place of a frequency would move the angle at position 4095 by up to 2.4e-4.
        assert error.max() < 2e-5, error.max()
