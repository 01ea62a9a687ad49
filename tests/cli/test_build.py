# SPDX-License-Identifier: Apache-2.0
"""The build verb: what it prints, its refusals, and that help is instant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import run
from tests.exporters.tensorrt.support import needs_builder
from tests.tiny import tiny_checkpoint


@needs_builder
def test_an_engine_in_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c").folder
    options = ("--to", "tensorrt", "--target", "rtx-4060", "--capacity", 64)
    assert run("export", checkpoint, *options, "--output", tmp_path / "e") == 0
    shown = capsys.readouterr()
    words = " ".join(shown.out.split())
    assert "14 compressed layers" in words and "8 plugin layers" in words and "rtx-4060" in words
    assert "has not run such an engine on a GPU" in words


@needs_builder
def test_json_from_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c").folder
    assert run("export", checkpoint, "--output", tmp_path / "o", "--json") == 0
    capsys.readouterr()
    options = ("--target", "sm_86", "--target", "sm_89", "--debug-outputs", "blocks", "--capacity", "max", "--json")
    assert run("build", tmp_path / "o", "--output", tmp_path / "e", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["built"] and report["compute_capabilities"] == ["8.6", "8.9"] and report["capacity"] == 256
    assert report["compressed_linears"] == 14 and report["peak_bytes"] > 0 and len(report["preflight"]) == 2


def test_a_board_gets_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # is not there, wherever this runs
    checkpoint = tiny_checkpoint(tmp_path / "c").folder
    assert run("build", checkpoint, "--target", "jetson-orin-nano-8gb", "--output", tmp_path / "b") == 0
    assert "No engine yet" in capsys.readouterr().out and (tmp_path / "b" / "build.sh").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c",), "[NQ-TARGET] no target is named"),
        (("c", "--target", "gtx-1080"), "[NQ-TARGET] target 'gtx-1080'"),
        (("c", "--target", "sm_86", "--capacity", "many"), "neither a number"),
        (("absent", "--target", "jetson-orin-nano"), "[NQ-CKPT] absent is not a folder"),
        (("c", "--target", "jetson-orin-nano", "--capacity", "9999"), "[NQ-OPTION] capacity 9999"),
    ],
)
def test_refusals_are_one_message_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # is not there, wherever this runs
    tiny_checkpoint(Path("c"))
    assert run("build", *arguments, "--output", "e") == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not Path("e").exists()


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom nanoquant_edge.cli import main\n"
        "try: main(['build', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'onnx_ir', 'rich', 'torch', 'tensorrt_rtx'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--target" in result.stdout and "rtx-4060" in result.stdout
