# SPDX-License-Identifier: Apache-2.0
"""Each family through every verb: compress, load with transformers, export, validate, generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import nanoquant_edge.hf
from nanoquant_edge.compression import Recipe, compress
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.hf.linear import NanoQuantLinear
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.runtimes import Generator
from nanoquant_edge.validation import validate
from nanoquant_edge.validation.dense import dense_model
from tests.compression.support import family_folder
from tests.families import ONE_EACH
from tests.tiny import TEXT

assert nanoquant_edge.hf
RECIPE = Recipe(
    name="test", windows=4, window_length=32, admm_steps=40, fp_epochs=1, fp_batch=2, ste_epochs=1, kd_epochs=1,
    kd_batch=2, relative_lr=True, fp_lr=0.01, ste_lr=0.02, ste_scale_lr=0.01, kd_lr=0.005,
)  # fmt: skip


@dataclass
class Made:
    """One family's dense folder, checkpoint and bundle."""

    dense: Path
    checkpoint: Checkpoint
    bundle: Bundle


@pytest.fixture(scope="module", params=ONE_EACH)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    dense = family_folder(folder / "dense", request.param)
    checkpoint = compress(dense, folder / "c", bpw=6.0, recipe=RECIPE, calibration=folder / "text.txt", device="cpu")
    return Made(dense, checkpoint, export_onnx(checkpoint, folder / "b"))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(3, 60)[None]).logits.float()


def test_transformers_loads_what_compress_wrote(made: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(made.checkpoint.folder, dtype=torch.float32)
    config = read_config(made.checkpoint.config)
    compressed = [name for name, module in model.named_modules() if isinstance(module, NanoQuantLinear)]
    assert sorted(compressed) == sorted(config.structure.layer_names(config.num_layers))
    for name in compressed:
        linear = name.removeprefix(f"{config.structure.blocks}.").partition(".")[2]
        assert (model.get_submodule(name).bias is not None) == config.has_bias(linear), name
    expected = logits(dense_model(made.checkpoint.folder))
    assert (logits(model) - expected).norm() / expected.norm() < 1e-5


def test_at_many_bits_the_function_is_kept(made: Made) -> None:
    """Random weights are the hardest: 40 steps at 6 bits leave a correlation, a wrong block or stream leaves none."""
    wanted = logits(AutoModelForCausalLM.from_pretrained(made.dense, dtype=torch.float32)).flatten()
    found = logits(dense_model(made.checkpoint.folder)).flatten()
    assert torch.nn.functional.cosine_similarity(wanted, found, dim=0) > 0.4


def test_what_is_not_compressed_is_the_dense_models(made: Made) -> None:
    dense = AutoModelForCausalLM.from_pretrained(made.dense, dtype=torch.float32).state_dict()
    config = read_config(made.checkpoint.config)
    names = {*config.norm_shapes(), f"{config.structure.embedding}.weight"}
    if config.structure.positions:
        names.add(f"{config.structure.positions}.weight")
    for name in names:
        stored = np.asarray(made.checkpoint.tensor(name)).astype(np.float32)
        np.testing.assert_array_equal(stored, dense[name].half().float() if stored.ndim > 1 else dense[name])


def test_the_bundle_passes_validation_and_generates(made: Made) -> None:
    report = validate(made.bundle.folder, made.checkpoint, threads=1)
    assert report.passed, report.to_dict()
    model = dense_model(made.checkpoint.folder)
    with Generator.from_bundle(made.bundle.folder) as generator:
        prompt = generator.tokenizer.encode("The quick brown fox jumps over")
        found = [token for token, _ in zip(generator.generate_step(prompt), range(12), strict=False)]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, len(prompt) :]
    assert found == expected.tolist()[: len(found)]
    assert len(found) == 12 or found[-1] == 2, "it stops early at the end token only"
