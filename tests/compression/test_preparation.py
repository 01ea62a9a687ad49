# SPDX-License-Identifier: Apache-2.0
"""What is left out of a recipe: for want of memory, and beyond the positions of a model."""

from __future__ import annotations

from pathlib import Path

import torch

from nanoquant_edge.compression import Recipe, compress
from nanoquant_edge.compression.calibrate.sources import CalibrationText
from nanoquant_edge.compression.preparation import affordable_recipe, recipe_with_text, recipe_within_positions
from tests.compression.support import family_folder, short_recipe, write_text

CPU = torch.device("cpu")
LINEARS = {"a": torch.nn.Linear(8, 6)}
CURVED, PLAIN = Recipe(curvature=True), Recipe()


def test_curvature_is_left_out_where_there_is_no_room() -> None:
    assert affordable_recipe(CURVED, LINEARS, in_a_block=1, device=CPU) == (CURVED, [])
    recipe, left_out = affordable_recipe(CURVED, LINEARS, in_a_block=1, device=CPU, free_memory=100)
    assert recipe == PLAIN
    assert left_out == ["curvature, for want of memory (curvature keeps 0.0 GB on the host, where 0.0 GB may be taken)"]
    assert affordable_recipe(PLAIN, LINEARS, in_a_block=1, device=CPU, free_memory=100) == (PLAIN, [])


def test_windows_are_no_longer_than_a_model_s_positions() -> None:
    assert recipe_within_positions(PLAIN, 2048) == (PLAIN, [])
    recipe, left_out = recipe_within_positions(PLAIN, 64)
    assert recipe == Recipe(window_length=64)
    assert left_out == ["calibration windows of more than 64 tokens, the model's longest text (2048 were asked for)"]


def test_a_model_with_a_table_of_positions_is_calibrated_within_it(tmp_path: Path) -> None:
    model, text = family_folder(tmp_path / "m", "opt"), write_text(tmp_path)
    recipe = short_recipe(window_length=1024, windows=2, admm_steps=2)
    made = compress(model, tmp_path / "c", recipe=recipe, calibration=text, device="cpu", bpw=2.0).settings
    assert made.calibration["window_length"] < 1024
    assert "were asked for" in made.recipe["left_out"][0]


def test_tuning_from_end_to_end_needs_text_and_all_weights() -> None:
    recipe, text = Recipe(end_to_end_tokens=1000), CalibrationText(("some text",))
    assert recipe_with_text(recipe, text, streamed=False) == (recipe, [])
    for given, streamed, reason in ((None, False, "--calibration"), (text, True, "streamed")):
        changed, left_out = recipe_with_text(recipe, given, streamed=streamed)
        assert changed.end_to_end_tokens == 0 and reason in left_out[0]
    assert recipe_with_text(Recipe(), None, streamed=True) == (Recipe(), [])
