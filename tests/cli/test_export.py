# SPDX-License-Identifier: Apache-2.0
"""The export verb: its table, its JSON, its refusals, and that help is instant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanoquant_edge.cli.export import command
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.graph import ACTIVATION_DTYPES, DIALECTS
from tests.command import run
from tests.tiny import tiny_checkpoint


def test_a_bundle_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    assert run("export", checkpoint.folder, "--to", "onnx", "--output", tmp_path / "b", "--portable") == 0
    shown = capsys.readouterr().out
    assert "model.onnx.data" in shown and "total" in shown and "14 compressed layers" in shown
    assert Bundle.open(tmp_path / "b", verify=True).portable


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    options = ("--dtype", "float16", "--dialect", "onnx24", "--max-length", 32, "--json")
    assert run("export", checkpoint.folder, "--output", tmp_path / "b", *options) == 0
    report = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(tmp_path / "b")
    assert report["dialect"] == "onnx24" and report["dtype"] == "float16" and report["max_length"] == 32
    assert report["files"] == {name: entry.size for name, entry in bundle.files.items()}
    assert report["total_bytes"] == sum(report["files"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "--output", "b"), "[NQ-CKPT] absent is not a folder"),
        (("c", "--output", "c"), "[NQ-OUTPUT]"),
        (("c", "--output", "b", "--max-length", "999"), "[NQ-OPTION] max_length 999"),
        (("c", "--output", "b", "--max-length", "0"), "--max-length"),
        (("c", "--output", "b", "--to", "genai2"), "'genai2' is not"),
        (("c", "--output", "b", "--to", "tensorrt"), "[NQ-TARGET] no target"),
        (("c", "--output", "b", "--to", "onnx", "--target", "sm_86"), "[NQ-OPTION] --target goes with --to tensorrt"),
        (("c", "--output", "b", "--to", "tensorrt", "--portable"), "[NQ-OPTION] --portable goes with --to onnx"),
        (("c",), "--output"),
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
    tiny_checkpoint(Path("c"))
    assert run("export", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [module for module in sys.modules if module.startswith("nanoquant_edge.exporters.onnx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert run("export", "c", "--output", tmp_path / "b") == 2
    shown = capsys.readouterr().err
    assert "[NQ-MISSING] export needs the package onnx_ir" in shown and "'onnx-ir>=" in shown


def test_the_choices_are_those_of_the_exporter() -> None:
    choices = {option.name: list(getattr(option.type, "choices", [])) for option in command.params}
    assert [*choices["dialect"], "trt103"] == list(DIALECTS) and choices["dtype"] == list(ACTIVATION_DTYPES)


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom nanoquant_edge.cli import main\n"
        "try: main(['export', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'onnx_ir', 'rich', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--portable" in result.stdout


def test_a_table_is_rounded_on_request_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", tie_word_embeddings=False)
    assert run("export", checkpoint.folder, "--output", tmp_path / "b", "--embedding", "int4", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["embedding"] == report["head"] == "int4"
    assert run("export", checkpoint.folder, "--output", tmp_path / "b", "--embedding", "int8", "--overwrite") == 0
    assert "embedding int8, head int8" in " ".join(capsys.readouterr().out.split())
    low = tiny_checkpoint(tmp_path / "low", embedding="int8")
    assert run("export", low.folder, "--output", tmp_path / "twice", "--embedding", "int4") == 2
    assert "[NQ-OPTION] the checkpoint stores model.embed_tokens as int8" in capsys.readouterr().err
