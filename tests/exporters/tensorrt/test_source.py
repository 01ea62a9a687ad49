# SPDX-License-Identifier: Apache-2.0
"""What is refused before anything is built, and weights that come out of a bundle as they went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.exporters.tensorrt import EngineOptions, build, build_engine
from nanoquant_edge.exporters.tensorrt.source import open_source
from nanoquant_edge.formats.bundle import MANIFEST_FILE
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "c", tie_word_embeddings=False, mlp_bias=True, mid=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bundle_is_a_weight_source(checkpoint: Checkpoint, tmp_path: Path, dtype: str) -> None:
    export_onnx(checkpoint, tmp_path / "b", dtype=dtype)
    source = open_source(tmp_path / "b")
    assert source.config == read_config(checkpoint.config) and source.layers == 14
    for name in checkpoint.layers:
        ours, theirs = source.weights.layer(name), checkpoint.layer(name)
        for part in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias"):
            found, expected = getattr(ours, part), getattr(theirs, part)
            assert (found is None) == (expected is None)
            np.testing.assert_array_equal(found, expected)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        np.testing.assert_array_equal(source.weights.tensor(name), checkpoint.tensor(name))
    with pytest.raises(NqEdgeError, match="no tensor absent"):
        source.weights.tensor("absent")
    with pytest.raises(NqEdgeError, match="layer absent is not"):
        source.weights.layer("absent")


def test_a_bundle_of_an_older_version_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "b")
    manifest = tmp_path / "b" / MANIFEST_FILE
    entry = json.loads(manifest.read_text())
    entry["source_model"].pop("config")
    manifest.write_text(json.dumps(entry))
    with pytest.raises(NqEdgeError, match="does not hold the model's configuration") as caught:
        open_source(tmp_path / "b")
    assert caught.value.code == "NQ-BUNDLE"
    entry["files"].pop("model.onnx")
    manifest.write_text(json.dumps(entry))
    with pytest.raises(NqEdgeError, match=r"holds no model\.onnx"):
        open_source(tmp_path / "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float32"}, "dtype 'float32' is not float16 or bfloat16"),
        ({"capacity": -1}, "capacity -1"),
        ({"batch": 0}, "batch 0"),
        ({"prefill": 0}, "prefill 0"),
        ({"positions": 0}, "positions 0"),
        ({"debug_outputs": "all"}, "debug_outputs 'all'"),
        ({"optimization_level": 9}, "optimization_level 9"),
        ({"workspace_mb": 0}, "workspace_mb 0"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        EngineOptions(**values)
    assert caught.value.code == "NQ-OPTION"


@pytest.mark.parametrize(
    ("target", "values", "code", "message"),
    [
        ("rtx-9999", {}, "NQ-TARGET", "'rtx-9999' is not known"),
        ("sm_86,sm_89", {"refit": True}, "NQ-OPTION", "refittable engine is for one"),
        ("sm_86", {"version_compatible": True}, "NQ-OPTION", "no version-compatible"),
        ("sm_86", {"timing_cache": Path("t")}, "NQ-OPTION", "no timing cache"),
        ("sm_75", {"dtype": "bfloat16"}, "NQ-OPTION", "sm_75 has no bfloat16"),
        ("sm_86", {"capacity": 5, "batch": 2}, "NQ-OPTION", "5 slots has 320 bytes a layer"),
        ("sm_86", {"capacity": 257}, "NQ-OPTION", "capacity 257 is not between 1 and the model's 256"),
    ],
)
def test_refusals_leave_nothing(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    values: dict[str, Any],
    code: str,
    message: str,
) -> None:
    monkeypatch.setattr(build, "can_build", lambda flavour: True)
    (tmp_path / "plugin.so").touch()
    with pytest.raises(NqEdgeError, match=message) as caught:
        build_engine(
            checkpoint.folder,
            tmp_path / "e",
            target=target,
            options=EngineOptions(**values),
            library=tmp_path / "plugin.so",
        )
    assert caught.value.code == code and [path.name for path in tmp_path.iterdir()] == ["plugin.so"]


def test_missing_packages_and_libraries(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "can_build", lambda flavour: False)
    with pytest.raises(NqEdgeError, match="needs the package tensorrt_rtx") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86")
    assert caught.value.code == "NQ-MISSING" and "tensorrt-rtx-cu13" in caught.value.hint
    monkeypatch.setattr(build, "can_build", lambda flavour: True)
    with pytest.raises(NqEdgeError, match="does not exist") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", library=tmp_path / "absent.so")
    assert caught.value.code == "NQ-NATIVE-MISSING"


def test_a_disk_that_is_too_small(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "can_build", lambda flavour: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(NqEdgeError, match="are free there") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="jetson-agx-orin")
    assert caught.value.code == "NQ-FIT" and not any(tmp_path.iterdir())
