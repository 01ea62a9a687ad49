# SPDX-License-Identifier: Apache-2.0
"""Options of an engine, and what is refused before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine
from nanoquant_edge.exporters.tensorrt.toolchain import Toolchain
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.exporters.tensorrt.support import NOTHING
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "c", tie_word_embeddings=False, mlp_bias=True, mid=True)


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
    target: str,
    values: dict[str, Any],
    code: str,
    message: str,
) -> None:
    (tmp_path / "plugin.so").touch()
    with pytest.raises(NqEdgeError, match=message) as caught:
        build_engine(
            checkpoint.folder,
            tmp_path / "e",
            target=target,
            options=EngineOptions(**values),
            library=tmp_path / "plugin.so",
            toolchain=Toolchain(("rtx", "standard")),
        )
    assert caught.value.code == code and [path.name for path in tmp_path.iterdir()] == ["plugin.so"]


def test_missing_packages_and_libraries(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="needs the package tensorrt_rtx") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", toolchain=NOTHING)
    assert caught.value.code == "NQ-MISSING" and "tensorrt-rtx-cu13" in caught.value.hint
    absent, toolchain = tmp_path / "absent.so", Toolchain(("rtx",))
    with pytest.raises(NqEdgeError, match="does not exist") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", library=absent, toolchain=toolchain)
    assert caught.value.code == "NQ-NATIVE-MISSING"


def test_a_disk_that_is_too_small(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(NqEdgeError, match="are free there") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="jetson-agx-orin", toolchain=NOTHING)
    assert caught.value.code == "NQ-FIT" and not any(tmp_path.iterdir())
