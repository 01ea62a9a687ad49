# SPDX-License-Identifier: Apache-2.0
"""The compress verb: its table, its JSON, and one clear refusal with nothing half written for everything bad."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoquant_edge.cli.compress import command
from nanoquant_edge.compression import PRESETS, Recipe
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.command import run
from tests.compression.support import dense_folder, short_recipe, write_text
from tests.models.test_loading import FAULTS, pickle_only
from tests.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def short_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of a second."""
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, short_recipe(name=name))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model `m` and a text `text.txt`, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    dense_folder(tmp_path / "m")
    write_text(tmp_path)
    return tmp_path


def test_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--calibration", "text.txt", "--preset", "quick", "--bpw", 1.5, "--seed", 4, "--device", "cpu")
    assert run("compress", "m", "--output", "c", *options, "--json") == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    checkpoint = Checkpoint(place / "c")
    assert report["true_bpw"] == checkpoint.settings.true_bpw
    assert report["target_bpw"] == 1.5
    assert report["layers"] == 14
    assert report["preset"] == "quick"
    assert report["calibration"] == "text.txt"
    assert report["total_bytes"] == sum(path.stat().st_size for path in (place / "c").iterdir())
    assert checkpoint.settings.recipe["seed"] == 4
    assert "100 %" not in out.err
    assert "takes hours" not in out.err


def test_a_table_and_progress(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "m", "--output", "c", "--calibration", "text.txt") == 0
    out = capsys.readouterr()
    true_bpw = Checkpoint(place / "c").settings.true_bpw
    assert f"{true_bpw:.4f} stored" in out.out
    assert "balanced, text.txt" in out.out
    assert "compress" in out.err
    assert "block 1 of 2" in out.err
    assert "balanced takes hours on a CPU" in out.err


def refused(place: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard error of a refusal: status 2, no traceback, and the folder looks as before."""
    before = sorted(path for path in place.rglob("*"))
    assert run("compress", *arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert sorted(path for path in place.rglob("*")) == before
    return shown


@pytest.mark.parametrize("fault", list(FAULTS))
def test_bad_models(place: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    make, code, message = FAULTS[fault]
    make(place / "m")
    shown = refused(place, capsys, "m", "--output", "c", "--calibration", "text.txt")
    assert f"[{code}]" in shown
    assert message in shown


def non_finite(place: Path) -> None:
    path = place / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def huge_table(place: Path) -> None:
    path = place / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][3, 4] = 1e6
    save_file(tensors, path, {"format": "pt"})


def small_vocabulary(place: Path) -> None:
    path = place / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].clone()
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((place / "m" / "config.json").read_text())
    (place / "m" / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (non_finite, "NQ-NUMERIC", "model.layers.1.mlp.up_proj.weight of the source model holds NaN"),
        (huge_table, "NQ-NUMERIC", "model.embed_tokens.weight does not fit float16"),
        (small_vocabulary, "NQ-MODEL", "the vocabulary has 200 entries"),
        (lambda place: (place / "text.txt").write_text("too short"), "NQ-CALIBRATION", "need at least"),
        (lambda place: (place / "text.txt").write_text(""), "NQ-CALIBRATION", "has 0 tokens"),
        (lambda place: (place / "text.txt").write_bytes(b"\xff\xfe"), "NQ-CALIBRATION", "is not UTF-8"),
        (lambda place: (place / "text.txt").unlink(), "NQ-CALIBRATION", "cannot read text.txt"),
        (lambda place: (place / "c").mkdir(), "NQ-OUTPUT", "c exists already"),
    ],
)
def test_bad_inputs(
    place: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], code: str, message: str
) -> None:
    make(place)
    shown = refused(place, capsys, "m", "--output", "c", "--calibration", "text.txt")
    assert f"[{code}]" in shown
    assert message in shown.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bpw", "0.01"), "[NQ-OPTION] bits per weight must lie between 0.05 and 8, not 0.01"),
        (("--bpw", "nan"), "[NQ-OPTION]"),
        (("--bpw", "much"), "--bpw"),
        (("--preset", "best"), "'best' is not one of"),
        (("--device", "abacus"), "[NQ-OPTION] 'abacus' is not a device"),
        (("--device", "meta"), "[NQ-OPTION]"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(1 << 80)), "--seed"),
        (("--compute-dtype", "float16"), "'float16' is not one of"),
        (("--scale-dtype", "int8"), "'int8' is not one of"),
    ],
)
def test_bad_options(place: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str) -> None:
    shown = refused(place, capsys, "m", "--output", "c", "--calibration", "text.txt", *options)
    assert message in shown


@pytest.mark.parametrize("way", ["--stream-weights", "--no-stream-weights"])
def test_weights_are_streamed_when_asked(place: Path, capsys: pytest.CaptureFixture[str], way: str) -> None:
    assert run("compress", "m", "--output", "c", "--calibration", "text.txt", way) == 0
    shown = capsys.readouterr()
    words = "read block by block" if way == "--stream-weights" else "in memory"
    assert f"weights are {words}" in shown.err.replace("the weights", "weights")
    assert words in shown.out


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("m.gguf", ("--calibration", "text.txt"), "weights are streamed from safetensors only"),
        ("p", ("--calibration", "text.txt", "--allow-pickle"), "weights are streamed from safetensors only"),
        ("m", (), "cannot write its own calibration text"),
    ],
)
def test_weights_that_cannot_be_streamed(
    place: Path, capsys: pytest.CaptureFixture[str], model: str, options: tuple[str, ...], message: str
) -> None:
    (place / "m.gguf").write_bytes(b"GGUF")
    pickle_only(dense_folder(place / "p"))
    shown = refused(place, capsys, model, "--output", "c", "--stream-weights", *options)
    assert "[NQ-OPTION]" in shown
    assert message in shown.replace("\n", " ")


def test_a_gpu_that_is_not_there(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = refused(place, capsys, "m", "--output", "c", "--calibration", "text.txt", "--device", "cuda")
    assert "[NQ-OPTION] this PyTorch sees no CUDA device" in shown


def test_a_compressed_model_and_a_foreign_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint(place / "done")
    assert "quantized already" in refused(place, capsys, "done", "--output", "c")
    assert "is not a GGUF file" in refused(place, capsys, "text.txt", "--output", "c")
    assert "does not exist" in refused(place, capsys, "absent", "--output", "c")
    assert "--output" in refused(place, capsys, "m")


def test_overwrite_replaces_only_what_is_ours(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("dear")
    options = ("--calibration", "text.txt", "--overwrite")
    assert "was not written by nq-edge" in refused(place, capsys, "m", "--output", "mine", *options)
    assert "is not a folder that can be written" in refused(place, capsys, "m", "--output", "text.txt/c", *options)
    tiny_checkpoint(place / "c")
    assert run("compress", "m", "--output", "c", *options) == 0
    assert Checkpoint(place / "c").settings.calibration["text"] == "text.txt"


def test_a_missing_package_names_the_extra(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [module for module in sys.modules if module.startswith("nanoquant_edge.compression")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    shown = refused(place, capsys, "m", "--output", "c")
    assert "[NQ-MISSING] compress needs the package torch" in shown
    assert "'torch>=" in shown


def test_the_choices_are_those_of_the_recipe() -> None:
    choices = {option.name: list(getattr(option.type, "choices", [])) for option in command.params}
    assert choices["preset"] == list(PRESETS)
    assert isinstance(PRESETS["quick"], Recipe)


def test_an_interrupted_run_is_continued_when_asked(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("compress", "m", "--output", "c", "--calibration", "text.txt", "--recipe", "official", "--device", "cpu")

    def interrupt(*_arguments: Any, **_keywords: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nanoquant_edge.compression.pipeline.distill_scales", interrupt)
        assert run(*options) != 0
    assert not (place / "c").exists()
    capsys.readouterr()
    assert run(*options) == 2
    shown = capsys.readouterr().err.replace("\n", " ")
    assert "[NQ-RESUME]" in shown
    assert "2 finished blocks" in shown
    assert "--resume" in shown
    assert run(*options, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "official"
    assert Checkpoint(place / "c").settings.recipe["name"] == "official"
    assert not (place / "c.resume").exists()
