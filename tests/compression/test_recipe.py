# SPDX-License-Identifier: Apache-2.0
"""Presets are valid, and what a recipe cannot mean is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nanoquant_edge.compression import PRESETS, Recipe
from nanoquant_edge.compression.recipe import REDUCED
from nanoquant_edge.errors import NqEdgeError


def test_presets_are_named_after_themselves_and_grow() -> None:
    assert list(PRESETS) == ["quick", "balanced", "full", "max", "official"]
    for name, recipe in PRESETS.items():
        assert Recipe.preset(name) == recipe
        assert recipe.name == name
    work = [r.windows * r.window_length * (r.fp_epochs + r.ste_epochs + r.kd_epochs) for r in PRESETS.values()]
    assert work == sorted(work)
    assert len(set(work)) == 3  # the full schedule, in three recipes
    assert [name for name, recipe in PRESETS.items() if recipe.end_to_end_tokens] == ["max"]
    assert [name for name, recipe in PRESETS.items() if not recipe.chat_share] == ["official"]


def test_official_is_the_published_schedule() -> None:
    official = PRESETS["official"]
    assert (official.windows, official.window_length, official.window_choice) == (128, 2048, "random")
    assert (official.fp_epochs, official.fp_lr, official.fp_batch) == (8, 1e-4, 4)
    assert (official.ste_epochs, official.ste_lr, official.ste_scale_lr, official.ste_batch) == (8, 1e-5, 1e-5, 1)
    assert (official.kd_epochs, official.kd_lr, official.kd_batch) == (8, 1e-5, 1)
    assert (official.admm_steps, official.svid_steps) == (400, 5)
    assert (official.admm_ridge, official.gamma, official.admm_unit_size) == (0.03, 0.2, False)
    assert not (official.relative_lr or official.refresh_inputs or official.rank_depth or official.rank_sensitivity)


def test_the_reduced_schedules_spend_the_same_sequences() -> None:
    spent = []
    for name, changes in REDUCED.items():
        recipe = Recipe.preset({"default": "full"}.get(name, name), **changes)
        spent.append([recipe.windows * epochs for epochs in (recipe.fp_epochs, recipe.ste_epochs, recipe.kd_epochs)])
    assert spent[0] == spent[1] == [64, 64, 64]


def test_a_preset_with_changes() -> None:
    changed = Recipe.preset("quick", windows=2, gamma=0.6)
    assert dataclasses.replace(PRESETS["quick"], windows=2, gamma=0.6) == changed
    assert PRESETS["quick"].windows != 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.windows = 3  # type: ignore[misc]


def test_the_dictionary_is_json_and_complete() -> None:
    recipe = Recipe.preset("balanced", windows=7)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("best", {}, "'best' is unknown; there are quick, balanced, full, max, official"),
        ("quick", {"windowz": 3}, "no setting 'windowz'"),
    ],
)
def test_unknown_names_are_refused(name: str, changes: dict, message: str) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        Recipe.preset(name, **changes)
    assert caught.value.code == "NQ-OPTION"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[(name, 0) for name in ("windows", "admm_steps", "svid_steps", "fp_batch", "ste_batch", "kd_batch")],
        *[(name, -1) for name in ("fp_epochs", "ste_epochs", "kd_epochs", "fp_lr", "ste_lr", "ste_scale_lr", "kd_lr")],
        ("window_length", 7),
        ("gamma", 1.01),
        ("gamma", -0.01),
        ("gamma", float("nan")),
        ("kd_lr", float("nan")),
        ("fp_lr", float("inf")),
        ("admm_ridge", 0.0),
        ("admm_ridge", float("nan")),
        ("rank_depth", -0.1),
        ("window_choice", "best"),
    ],
)
def test_values_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(NqEdgeError, match=setting) as caught:
        Recipe(**{setting: value})  # type: ignore[arg-type]
    assert caught.value.code == "NQ-OPTION"
