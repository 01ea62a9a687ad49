# SPDX-License-Identifier: Apache-2.0
"""A path of another kind than a verb takes is called what it is, and the verb that takes it is named."""

from __future__ import annotations

import doctest
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from nanoquant_edge.cli import paths
from nanoquant_edge.cli.paths import KINDS, check_kind, kind_of
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from tests.command import run
from tests.tiny import llama_config, tiny_checkpoint


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One path of every kind."""
    root = tmp_path_factory.mktemp("things")
    made = {name: root / name.replace(" ", "-") for name in KINDS}
    tiny_checkpoint(made["checkpoint"])
    export_onnx(made["checkpoint"], made["bundle"])
    for name, backend in (("engine", "tensorrt-rtx"), ("build folder", "tensorrt-build")):
        shutil.copytree(made["bundle"], made[name])
        manifest = json.loads((made[name] / "nq_bundle.json").read_text())
        (made[name] / "nq_bundle.json").write_text(json.dumps({**manifest, "backend": backend}))
    for name, files in (
        ("genai", {"genai_config.json": "{}", "model.onnx": ""}),
        ("deployment", {"nq_deploy.json": "{}", "run.sh": ""}),
        ("model", {"config.json": json.dumps(llama_config()), "model.safetensors": ""}),
        ("state", {"run.json": "{}", "start.safetensors": ""}),
    ):
        made[name].mkdir()
        for file, text in files.items():
            (made[name] / file).write_text(text)
    made["gguf"] = root / "model.Q4.gguf"
    made["gguf"].write_bytes(b"GGUF" + bytes(20))
    made["official"] = root / "factors.pt"
    with zipfile.ZipFile(made["official"], "w") as archive:
        archive.writestr("archive/data.pkl", "")
    return made


def test_every_kind_is_recognised(things: dict[str, Path]) -> None:
    assert {name: kind_of(path) for name, path in things.items()} == {name: name for name in KINDS}


def test_a_folder_for_genai_is_known_by_its_manifest_too(things: dict[str, Path], tmp_path: Path) -> None:
    manifest = json.loads((things["bundle"] / "nq_bundle.json").read_text())
    (tmp_path / "nq_bundle.json").write_text(json.dumps({**manifest, "backend": "onnxruntime-genai"}))
    assert kind_of(tmp_path) == "genai"


def test_anything_else_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    (tmp_path / "file").write_text("{")
    for path in (tmp_path, tmp_path / "file", tmp_path / "none", "owner/name", "a\0b", "x" * 5000, ""):
        assert kind_of(path) is None
        check_kind(path, "bundle", code="NQ-BUNDLE")


#: Verb and its other arguments -> the kinds that it takes.
TAKES = {
    ("compress", "--output", "out"): {"model", "gguf"},
    ("import", "--base", "owner/base", "--output", "out"): {"official", "gguf", "model"},
    ("inspect",): {"checkpoint", "bundle", "engine", "build folder"},
    ("export", "--output", "out"): {"checkpoint", "bundle"},
    ("export", "--target", "rtx-4060", "--output", "out"): {"checkpoint", "bundle"},
    ("build", "--target", "rtx-4060", "--output", "out"): {"bundle", "checkpoint", "build folder"},
    ("validate",): {"bundle", "engine", "checkpoint"},
    ("generate", "--prompt", "x"): {"bundle", "engine", "checkpoint"},
    ("bench",): {"bundle", "engine", "checkpoint"},
    ("devices", "fit", "--device", "pi5"): {"bundle", "engine", "checkpoint", "model"},
    ("deploy", "--device", "pi5", "--output", "out"): {"bundle", "engine", "build folder"},
}


@pytest.mark.parametrize("command", TAKES, ids=" ".join)
def test_the_message_names_what_it_is_and_the_verb_that_takes_it(
    command: tuple[str, ...], things: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    verb = command[:2] if command[0] == "devices" else command[:1]
    for name, path in things.items():
        if name in TAKES[command]:
            continue
        assert run(*verb, path, *command[len(verb) :]) == 2
        said = capsys.readouterr().err
        assert f"{path} is {KINDS[name].title}; this verb takes" in said
        named = KINDS[name].step.format(path=path)
        assert named[1:] in said and ("nq-edge " in named or "run" in named)


def test_what_lies_inside_or_around_is_suggested(
    things: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", things["bundle"] / "model.onnx", "-p", "x") == 2
    assert f"Did you mean {things['bundle']}?" in capsys.readouterr().err
    shutil.copytree(things["checkpoint"], tmp_path / "demo one" / "checkpoint")
    assert run("export", tmp_path / "demo one", "--output", tmp_path / "out") == 2
    assert f"Did you mean '{tmp_path}/demo one/checkpoint'?" in capsys.readouterr().err


def test_a_strangers_name_is_no_command(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch x)\x1b[2J"
    folder.mkdir()
    (folder / "genai_config.json").write_text("{}")
    (folder / "model.onnx").write_text("")
    with pytest.raises(NqEdgeError) as caught:
        check_kind(folder, "bundle", code="NQ-BUNDLE")
    assert f"'{tmp_path}/$(touch x)?[2J'" in caught.value.message


def test_the_example_runs() -> None:
    assert doctest.testmod(paths).failed == 0
