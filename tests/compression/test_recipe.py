# SPDX-License-Identifier: Apache-2.0
"""Presets are valid, and what a recipe cannot mean is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nanoquant_edge.compression import PRESETS, Recipe
from nanoquant_edge.errors import NqEdgeError


def test_presets_are_named_after_themselves_and_grow() -> None:
    assert list(PRESETS) == ["quick", "balanced", "full"]
    for name, recipe in PRESETS.items():
        assert Recipe.preset(name) == recipe
        assert recipe.name == name
    work = [r.windows * r.window_length * (r.fp_epochs + r.ste_epochs + r.kd_epochs) for r in PRESETS.values()]
    assert work == sorted(work)
    assert len(set(work)) == 3


def test_full_is_the_published_schedule() -> None:
    full = PRESETS["full"]
    assert (full.windows, full.window_length, full.admm_steps, full.svid_steps) == (128, 2048, 400, 5)
    assert (full.fp_epochs, full.fp_lr, full.fp_batch) == (8, 1e-4, 4)
    assert (full.ste_epochs, full.ste_lr, full.ste_scale_lr, full.ste_batch) == (8, 1e-5, 1e-5, 1)
    assert (full.kd_epochs, full.kd_lr, full.kd_batch) == (8, 1e-5, 1)
    assert (full.admm_schedule, full.admm_ridge, full.gamma, full.relative_lr) == ("linear", 0.03, 0.2, False)


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
        ("best", {}, "'best' is unknown; there are quick, balanced, full"),
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
        ("admm_schedule", "exp"),
        ("kd_lr", float("nan")),
        ("fp_lr", float("inf")),
        ("admm_ridge", 0.0),
        ("admm_ridge", float("nan")),
    ],
)
def test_values_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(NqEdgeError, match=setting) as caught:
        Recipe(**{setting: value})  # type: ignore[arg-type]
    assert caught.value.code == "NQ-OPTION"
