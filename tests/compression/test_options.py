# SPDX-License-Identifier: Apache-2.0
"""What a compression may be told is checked when the options are made, and keywords count before an options object."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoquant_edge.compression import PRESETS, CompressOptions, compress
from nanoquant_edge.compression.recipe import Recipe
from nanoquant_edge.errors import NqEdgeError
from tests.compression.support import short_recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bpw": 0.01}, "between 0.05 and 8, not 0.01"),
        ({"bpw": math.nan}, "between 0.05 and 8"),
        ({"recipe": "best"}, "preset 'best' is unknown"),
        ({"seed": -1}, "seed must lie between 0 and 2\\^63 - 1, not -1"),
        ({"seed": 1 << 63}, "seed must lie between"),
        ({"device": "tpu"}, "'tpu' is not a device"),
        ({"device": "meta"}, "'meta' is not supported"),
        ({"compute_dtype": "float16"}, "compute_dtype must be auto, float32 or bfloat16, not 'float16'"),
        ({"scale_dtype": "int8"}, "scale_dtype must be float16, bfloat16 or float32, not 'int8'"),
        ({"embedding": "int3"}, "embedding must be fp16, int8 or int4, not 'int3'"),
    ],
)
def test_what_cannot_be_is_refused_when_the_options_are_made(changes: dict[str, Any], message: str) -> None:
    for make in (CompressOptions, CompressOptions().changed):
        with pytest.raises(NqEdgeError, match=message) as caught:
            make(**changes)
        assert caught.value.code == "NQ-OPTION"


@pytest.mark.parametrize(
    "changes", [{"embedding": "int3"}, {"compute_dtype": "float16"}, {"scale_dtype": "int8"}, {"recipe": "best"}]
)
def test_a_wrong_option_is_refused_before_the_model_is_looked_for(tmp_path: Path, changes: dict[str, Any]) -> None:
    steps: list[str] = []
    with pytest.raises(NqEdgeError, match=next(iter(changes.values()))) as caught:
        compress(tmp_path / "no model", tmp_path / "c", progress=lambda _fraction, text: steps.append(text), **changes)
    assert caught.value.code == "NQ-OPTION"
    assert not steps
    assert not list(tmp_path.iterdir())


def test_keywords_count_before_the_options(tmp_path: Path) -> None:
    options = CompressOptions(embedding="int8", overwrite=True)
    with pytest.raises(NqEdgeError, match="does not exist") as caught:
        compress(tmp_path / "no model", tmp_path / "c", options)
    assert caught.value.code == "NQ-MODEL"
    with pytest.raises(NqEdgeError, match="not 'int3'"):
        compress(tmp_path / "no model", tmp_path / "c", options, embedding="int3")
    with pytest.raises(TypeError, match="embeding"):
        compress(tmp_path / "no model", tmp_path / "c", embeding="int8")


def test_options_are_frozen_and_know_their_schedule() -> None:
    options = CompressOptions(recipe="quick")
    assert options.schedule == PRESETS["quick"]
    assert CompressOptions(recipe=short_recipe()).schedule == short_recipe()
    assert options.changed(seed=3) == dataclasses.replace(options, seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 3  # type: ignore[misc]


def test_the_compute_type() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert CompressOptions(compute_dtype="float32").compute_type(gpu) == torch.float32
    assert CompressOptions(compute_dtype="bfloat16").compute_type(cpu) == torch.bfloat16
    assert CompressOptions().compute_type(gpu) == torch.bfloat16


def test_the_text_has_a_name() -> None:
    assert CompressOptions().calibration_name == "self-generated"
    assert CompressOptions(calibration=Path("a") / "text.txt").calibration_name == "text.txt"


def test_a_recipe_is_a_recipe() -> None:
    assert isinstance(CompressOptions().schedule, Recipe)
    assert CompressOptions().schedule.name == "balanced"
