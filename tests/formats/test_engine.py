# SPDX-License-Identifier: Apache-2.0
"""The engine entry of a manifest: what it records, and every way in which a stranger's is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import MANIFEST_FILE, Bundle
from nanoquant_edge.formats.engine import read_engine
from nanoquant_edge.formats.entry import Entry
from tests.formats.support import ENGINE, ENTRY, engine_bundle


def test_round_trip(tmp_path: Path) -> None:
    assert read_engine(Entry(ENTRY, "engine")) == ENGINE
    bundle = engine_bundle(tmp_path / "b")
    assert bundle.engine == ENGINE
    assert Bundle.open(tmp_path / "b", verify=True) == bundle
    assert bundle.write() == bundle


def test_a_profile_holds_what_lies_in_its_spans() -> None:
    prefill = ENGINE.profiles["prefill"]
    assert prefill.holds(1, 1, 1) and prefill.holds(1, 64, 64)
    assert not (prefill.holds(2, 1, 1) or prefill.holds(1, 65, 1) or prefill.holds(1, 8, 0))


@pytest.mark.parametrize(
    ("flavour", "embedded", "compatible", "expected"),
    [
        ("rtx", False, False, False),
        ("rtx", True, False, True),
        ("rtx", False, True, False),
        ("standard", False, True, True),
        ("standard", False, False, False),
    ],
)
def test_host_code(flavour: str, embedded: bool, compatible: bool, expected: bool) -> None:
    entry = copy.deepcopy(ENTRY)
    entry.update(flavour=flavour, version_compatible=compatible)
    entry["plugin"]["embedded"] = embedded
    assert read_engine(Entry(entry, "engine")).host_code is expected


def _set(entry: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(entry)
    place: Any = changed
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("file", ""),
        ("file", 3),
        ("tensorrt_version", "latest"),
        ("tensorrt_version", "1"),
        ("tensorrt_version", "1.7\n"),
        ("flavour", "lean"),
        ("compute_capabilities", "8.6"),
        ("compute_capabilities", ["8.6", "8.6"]),
        ("compute_capabilities", ["86"]),
        ("compute_capabilities", [8.6]),
        ("plugin", None),
        ("plugin.sha256", "AB" * 32),
        ("plugin.embedded", 0),
        ("precision", "int8"),
        ("kv.dtype", "fp8"),
        ("kv.layers", 0),
        ("kv.capacity", True),
        ("kv.capacity", 1 << 40),
        ("kv.head_dim", 16.0),
        ("kv.in_place", 1),
        ("profiles", {}),
        ("profiles", []),
        ("profiles.decode", None),
        ("profiles.decode.index", 2),
        ("profiles.decode.index", 1),
        ("profiles.decode.index", -1),
        ("profiles.decode.batch", [1, 4]),
        ("profiles.decode.batch", [4, 1, 4]),
        ("profiles.decode.batch", [0, 1, 4]),
        ("profiles.decode.batch", [1, 1, True]),
        ("profiles.decode.batch", [1, 1, 1 << 31]),
        ("profiles.decode.sequence", [2, 2, 2]),
        ("profiles.decode.total", [1, 95, 95]),
        ("profiles.prefill.batch", [2, 2, 2]),
        ("profiles.prefill.sequence", [2, 4, 8]),
        ("profiles.prefill.positions", "111"),
        ("refit", "yes"),
        ("plugin_layers", -1),
        ("plugin_layers", 15),
        ("compressed_linears", 1 << 31),
        ("debug_outputs", {"a": 1}),
        ("debug_outputs", ["a", ""]),
        ("timing_cache", None),
    ],
)
def test_impossible_values_are_named(path: str, value: Any) -> None:
    with pytest.raises(NqEdgeError, match=r"the manifest's engine\.") as caught:
        read_engine(Entry(_set(ENTRY, path, value), "engine"))
    assert caught.value.code == "NQ-BUNDLE"


@pytest.mark.parametrize("path", ["refit", "plugin.namespace", "kv.in_place", "profiles.decode.total"])
def test_missing_and_unknown_keys_are_named(path: str) -> None:
    changed = copy.deepcopy(ENTRY)
    place: Any = changed
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    del place[last]
    with pytest.raises(NqEdgeError, match=rf"engine\.{path} is missing"):
        read_engine(Entry(changed, "engine"))
    place[last + "s"] = place[last] = 1
    with pytest.raises(NqEdgeError, match=rf"engine\.{path}s is unknown|impossible"):
        read_engine(Entry(changed, "engine"))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _paths(entry: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in entry.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
    return found


@given(path=st.sampled_from(_paths(ENTRY)), value=_json)
def test_any_value_anywhere_is_read_or_refused(path: str, value: Any) -> None:
    try:
        engine = read_engine(Entry(_set(ENTRY, path, value), "engine"))
    except NqEdgeError as error:
        assert error.code == "NQ-BUNDLE"
        assert len(error.message) < 400
    else:
        assert read_engine(Entry(json.loads(json.dumps(engine.to_dict())), "engine")) == engine


@given(_json)
def test_anything_as_an_entry_is_refused(value: Any) -> None:
    with pytest.raises(NqEdgeError):
        read_engine(Entry(value, "engine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "tensorrt"}, "engine.flavour is 'rtx', the bundle's 'standard'"),
        ({"backend": "onnxruntime"}, "describes an engine for backend 'onnxruntime'"),
        ({"dtype": "bfloat16"}, "engine.precision is 'float16', the bundle's 'bfloat16'"),
        ({"compressed_linears": 15}, "engine.compressed_linears is 14, the bundle's 15"),
        ({"engine": None}, "engine has the impossible value"),
        ({"engine": {**ENTRY, "file": "other.engine"}}, "needs 'other.engine', which the manifest does not list"),
        ({"engine": {**ENTRY, "file": "../../etc/passwd"}}, "which the manifest does not list"),
        ({"engine": {**ENTRY, "runtime_cache": "r"}}, "needs 'r', which the manifest does not list"),
        ({"engine": {**ENTRY, "kv": {**ENTRY["kv"], "capacity": 64}}}, "engine.kv is"),
    ],
)
def test_a_manifest_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    engine_bundle(tmp_path / "b")
    path = tmp_path / "b" / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(NqEdgeError) as caught:
        Bundle.open(tmp_path / "b")
    assert caught.value.code == "NQ-BUNDLE" and message in caught.value.message


def test_a_truncated_engine_is_noticed_by_its_size(tmp_path: Path) -> None:
    engine_bundle(tmp_path / "b")
    (tmp_path / "b/model.engine").write_bytes(b"engin")
    with pytest.raises(NqEdgeError, match=r"model\.engine has 5 bytes, the manifest says 6") as caught:
        Bundle.open(tmp_path / "b", verify=False)
    assert caught.value.code == "NQ-HASH"
