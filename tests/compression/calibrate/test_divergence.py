# SPDX-License-Identifier: Apache-2.0
"""Divergence with one layer changed: by its definition, the model as it was, and ranks that follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.calibrate.divergence import SplicedModel
from nanoquant_edge.compression.calibrate.sensitivities import measured_errors, ranks_to_measure
from tests.compression.support import (
    dense_folder,
    dense_llama,
    even_importances,
    linears_of,
    short_recipe,
    short_run,
    source_of,
    write_text,
)

WINDOWS = torch.randint(0, 320, (10, 24), generator=torch.Generator().manual_seed(5))
NAME = "model.layers.1.mlp.up_proj"


def test_the_divergence_is_that_of_the_changed_model_which_is_put_back() -> None:
    model = dense_llama()
    spliced = SplicedModel(source_of(model), WINDOWS, short_run())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.get_submodule(NAME).weight
    changed = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.std()
    found = spliced.divergence(NAME, changed)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert spliced.divergence(NAME, weight) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        wanted = model(WINDOWS[:8]).logits.log_softmax(-1)
        weight.copy_(changed)
        other = model(WINDOWS[:8]).logits.log_softmax(-1)
    assert found == pytest.approx(float((wanted.exp() * (wanted - other)).sum(-1).mean()), rel=1e-4)


def test_errors_are_scaled_to_the_divergence_at_the_even_rank() -> None:
    model = dense_llama(num_hidden_layers=1)
    linears = linears_of(model)
    even, importances = dict.fromkeys(linears, 32), even_importances(linears)
    asked: dict[str, torch.Tensor] = {}

    def divergence(name: str, weight: torch.Tensor) -> float:
        assert weight.shape == linears[name].weight.shape
        asked[name] = weight
        return 0.25 * len(asked)

    plain = measured_errors(linears, importances, even, short_run())
    scaled = measured_errors(linears, importances, even, short_run(), divergence=divergence)
    assert list(asked) == list(linears)
    column = ranks_to_measure(32).index(32)
    torch.testing.assert_close(scaled[:, column], 0.25 * torch.arange(1, 8, dtype=torch.float64))
    torch.testing.assert_close(scaled / scaled[:, column, None], plain / plain[:, column, None])


def test_a_run_has_other_ranks_and_streamed_weights_leave_it_out(tmp_path: Path) -> None:
    model = dense_folder(tmp_path / "m", hidden_size=128, intermediate_size=512, num_hidden_layers=2)
    options: dict[str, Any] = {"bpw": 3.0, "device": "cpu", "calibration": write_text(tmp_path)}
    short = {"rank_sensitivity": True, "fp_epochs": 0, "ste_epochs": 0, "kd_epochs": 0}
    made = {}
    for name, divergence, streamed in (("errors", False, False), ("kl", True, False), ("streamed", True, True)):
        recipe = short_recipe(**short, rank_divergence=divergence)
        made[name] = compress(model, tmp_path / name, recipe=recipe, stream_weights=streamed, **options).settings
    assert made["kl"].ranks != made["errors"].ranks == made["streamed"].ranks
    assert made["kl"].recipe["rank_divergence"] and not made["streamed"].recipe["rank_divergence"]
    assert "ranks by divergence" in made["streamed"].recipe["left_out"][0]
