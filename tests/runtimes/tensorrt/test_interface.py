# SPDX-License-Identifier: Apache-2.0
"""An engine that is not the manifest's is refused before any memory is bound to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.bundle import Bundle
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.tensorrt.engine import TensorInfo
from nanoquant_edge.runtimes.tensorrt.interface import check_interface
from tests.runtimes.tensorrt.conftest import engine_info
from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine

KV = "past_key_values.1.value"


@pytest.fixture
def loaded(graph_bundle: Path, engine_bundle: Bundle) -> OrtEngine:
    return OrtEngine(HostDevice(), engine_bundle, graph_bundle)


def _edit(name: str, **changes: Any) -> Callable[[OrtEngine], None]:
    def edit(engine: OrtEngine) -> None:
        engine.tensors[name] = replace(engine.tensors[name], **changes)

    return edit


def _drop(name: str) -> Callable[[OrtEngine], None]:
    return lambda engine: engine.tensors.pop(name) and None


def _add(engine: OrtEngine) -> None:
    engine.tensors["more"] = TensorInfo("more", True, "int64", (1,))


def _profiles(engine: OrtEngine) -> None:
    engine.profiles = 3


def _alias(engine: OrtEngine) -> None:
    engine.alias = lambda name: "past_key_values.0.key"  # type: ignore[method-assign]


def test_the_right_engine_passes(loaded: OrtEngine) -> None:
    check_interface(loaded, engine_info(), 320)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop("attention_mask"), "no tensor attention_mask"),
        (_add, "an unknown tensor more"),
        (_edit(KV, is_input=False), f"{KV} is an output"),
        (_edit(KV, dtype="float16"), f"{KV} is float16, the manifest says float32"),
        (_edit(KV, shape=(-1, 2, 97, 16)), r"shape \[-1, 2, 97, 16\], the manifest says \[-1, 2, 96, 16\]"),
        (_edit(KV, shape=(-1, 2, -1, 16)), "the manifest says"),
        (_edit(KV, shape=(-1, 2, 96)), "the manifest says"),
        (_edit("present.0.key", shape=(-1, 4, 96, 16)), "present.0.key has shape"),
        (_edit("logits", shape=(-1, -1, 321)), "logits has shape"),
        (_edit("logits", dtype="float16"), "logits is float16"),
        (_edit("input_ids", dtype="int32"), "input_ids is int32"),
        (_edit("block.0.output", shape=(-1, 40)), "block.0.output has shape"),
        (_edit("block.0.output", shape=(-1, -1, -1)), "block.0.output has shape"),
        (_profiles, "has 3 optimization profiles, the manifest 2"),
        (_alias, r"present\.0\.value shares the memory of past_key_values\.0\.key"),
    ],
)
def test_other_engines_are_refused(edit: Callable[[OrtEngine], None], message: str, loaded: OrtEngine) -> None:
    edit(loaded)
    with pytest.raises(NqEdgeError, match=message) as caught:
        check_interface(loaded, engine_info(), 320)
    assert caught.value.code == "NQ-BUNDLE" and "nq-edge build" in caught.value.hint


@pytest.mark.parametrize("dimension", ["batch", "sequence", "positions", "total"])
def test_profiles_that_differ_from_the_manifest_are_refused(dimension: str, loaded: OrtEngine) -> None:
    info = engine_info()
    prefill = replace(info.profiles["prefill"], **{dimension: (1, 1, 200)})
    with pytest.raises(NqEdgeError, match="profile prefill has largest shape"):
        check_interface(loaded, replace(info, profiles={**info.profiles, "prefill": prefill}), 320)


def test_a_dimension_that_the_profiles_fix_may_be_fixed_in_the_engine(loaded: OrtEngine) -> None:
    info = engine_info()
    profiles = {name: replace(value, total=(96, 96, 96)) for name, value in info.profiles.items()}
    loaded.info = info = replace(info, profiles=profiles)
    _edit("attention_mask", shape=(-1, 96))(loaded)
    check_interface(loaded, info, 320)
