# SPDX-License-Identifier: Apache-2.0
"""Perplexity by its definition, equal in PyTorch and in a bundle, whatever the pieces."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.runtimes import OnnxRuntimeBackend
from nanoquant_edge.system.progress import Progress
from nanoquant_edge.validation import backend_perplexity, perplexity
from nanoquant_edge.validation.dense import dense_model
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("logit_bytes", [1 << 25, 320 * 4 * 5, 320 * 4 * 31])
def test_both_sides_follow_the_definition(tmp_path: Path, logit_bytes: int) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    model = dense_model(checkpoint.folder)
    ids = np.random.default_rng(0).integers(0, 320, 3 * 32 + 7)
    means = []
    for row in torch.from_numpy(ids[:96]).reshape(3, 32):
        with torch.inference_mode():
            means.append(model(input_ids=row[None], labels=row[None]).loss.item())
    expected = math.exp(sum(means) / 3)
    seen: list[float] = []
    progress = Progress(lambda done, _text: seen.append(done))
    found = perplexity(model, ids, window=32, batch=2, logit_bytes=logit_bytes, progress=progress)
    assert found == pytest.approx(expected, 1e-5)
    assert seen == [2 / 3, 1.0]
    assert perplexity(model, torch.from_numpy(ids), window=32) == pytest.approx(expected, 1e-5)
    bundle = export_onnx(checkpoint, tmp_path / "bundle")
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        found = backend_perplexity(backend, list(ids), window=32, logit_bytes=logit_bytes, progress=progress)
    assert found == pytest.approx(expected, 1e-5)
    assert seen[2:] == [1 / 3, 2 / 3, 1.0]


@pytest.mark.parametrize(("count", "window"), [(5, 8), (0, 2), (5, 1)])
def test_too_few_tokens(count: int, window: int) -> None:
    with pytest.raises(ValueError, match="no window"):
        perplexity(None, range(count), window=window)
