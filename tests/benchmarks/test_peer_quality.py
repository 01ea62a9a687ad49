# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp is told of a model: mean squares of inputs by its names of tensors; what its files say of bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peer_quality import input_squares, layer_bits
from nanoquant_edge.models.loading import load_model
from tests.compression.support import family_folder
from tests.models.gguf_files import llama, write_gguf


def test_importances_are_mean_squares_of_inputs(tmp_path: Path) -> None:
    windows = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with load_model(family_folder(tmp_path / "model", "qwen3")) as source:
        found = input_squares(source, windows)
        block = source.model.model.layers[0]
        with torch.no_grad():
            states = block.input_layernorm(source.model.model.embed_tokens(windows))
    assert len(found) == 7 * source.decoder.num_layers
    wanted = states.square().mean((0, 1)).numpy()
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], wanted, rtol=1e-4)
    assert found["blk.1.ffn_down.weight"].shape == (source.decoder.intermediate_size,)


def test_bits_are_those_of_the_compressed_layers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", llama())
    assert layer_bits(tmp_path / "m.gguf") == pytest.approx(32.0)
