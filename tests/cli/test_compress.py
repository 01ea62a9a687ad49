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
from nanoquant_edge.compression import PRESETS, Recipe, compress
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.command import run
from tests.compression.support import Killed, dense_folder, short_recipe, stop_at, write_text
from tests.models.test_loading import FAULTS, pickle_only
from tests.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def short_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of a second."""
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, short_recipe(name=name))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model `m` and a text `text.txt`, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    dense_folder(tmp_path / "m")
    write_text(tmp_path)
    return tmp_path


def test_json(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--calibration", "text.txt", "--preset", "quick", "--bpw", 1.5, "--seed", 4, "--device", "cpu")
    assert run("compress", "m", "--output", "c", *options, "--json") == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    checkpoint = Checkpoint(workplace / "c")
    assert report["true_bpw"] == checkpoint.settings.true_bpw
    assert report["target_bpw"] == 1.5
    assert report["layers"] == 14
    assert report["preset"] == "quick"
    assert report["calibration"] == "text.txt"
    assert report["total_bytes"] == sum(path.stat().st_size for path in (workplace / "c").iterdir())
    assert checkpoint.settings.recipe["seed"] == 4
    assert "100 %" not in out.err
    assert "takes hours" not in out.err


def test_a_page_and_a_plot_for_terminals(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--calibration", "text.txt", "--preset", "quick", "--bpw", 1.5, "--device", "cpu")
    assert run("compress", "m", "--output", "c", *options, "--report", "r.html") == 0
    assert "factorization error of each block" not in capsys.readouterr().out, "a pipe gets the table alone"
    page = (workplace / "r.html").read_text(encoding="utf-8")
    errors = Checkpoint(workplace / "c").settings.recipe["block_errors"]
    assert page.count("<svg") >= 4 and all(f"{error:.3f}" in page for error in errors)
    assert run("compress", "m", "--output", "d", *options, "--report", "r.pdf") == 2
    assert not (workplace / "d").exists(), "refused before anything was computed"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("compress", "m", "--output", "e", *options) == 0
    out = capsys.readouterr().out
    assert "factorization error of each block" in out and "block 1" in out and "█" in out


def test_a_table_and_a_warning_of_hours(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "m", "--output", "c", "--calibration", "text.txt") == 0
    out = capsys.readouterr()
    true_bpw = Checkpoint(workplace / "c").settings.true_bpw
    assert f"{true_bpw:.4f} stored" in out.out
    assert "balanced, text.txt" in out.out
    assert "balanced takes hours on a CPU" in out.err


def refused(workplace: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard error of a refusal: status 2, no traceback, and the folder looks as before."""
    before = sorted(path for path in workplace.rglob("*"))
    assert run("compress", *arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert sorted(path for path in workplace.rglob("*")) == before
    return shown


@pytest.mark.parametrize("fault", list(FAULTS))
def test_bad_models(workplace: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    make, code, message = FAULTS[fault]
    make(workplace / "m")
    shown = refused(workplace, capsys, "m", "--output", "c", "--calibration", "text.txt")
    assert f"[{code}]" in shown
    assert message in shown


def non_finite(workplace: Path) -> None:
    path = workplace / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def huge_table(workplace: Path) -> None:
    path = workplace / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][3, 4] = 1e6
    save_file(tensors, path, {"format": "pt"})


def small_vocabulary(workplace: Path) -> None:
    path = workplace / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].clone()
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((workplace / "m" / "config.json").read_text())
    (workplace / "m" / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (non_finite, "NQ-NUMERIC", "model.layers.1.mlp.up_proj.weight of the source model holds NaN"),
        (huge_table, "NQ-NUMERIC", "model.embed_tokens.weight does not fit float16"),
        (small_vocabulary, "NQ-MODEL", "the vocabulary has 200 entries"),
        (lambda workplace: (workplace / "text.txt").write_text("too short"), "NQ-CALIBRATION", "need at least"),
        (lambda workplace: (workplace / "text.txt").write_text(""), "NQ-CALIBRATION", "has 0 tokens"),
        (lambda workplace: (workplace / "text.txt").write_bytes(b"\xff\xfe"), "NQ-CALIBRATION", "is not UTF-8"),
        (lambda workplace: (workplace / "text.txt").unlink(), "NQ-CALIBRATION", "cannot read text.txt"),
        (lambda workplace: (workplace / "c").mkdir(), "NQ-OUTPUT", "c exists already"),
    ],
)
def test_bad_inputs(
    workplace: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], code: str, message: str
) -> None:
    make(workplace)
    shown = refused(workplace, capsys, "m", "--output", "c", "--calibration", "text.txt")
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
def test_bad_options(
    workplace: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str
) -> None:
    shown = refused(workplace, capsys, "m", "--output", "c", "--calibration", "text.txt", *options)
    assert message in shown


@pytest.mark.parametrize("way", ["--stream-weights", "--no-stream-weights"])
def test_weights_are_streamed_when_asked(workplace: Path, capsys: pytest.CaptureFixture[str], way: str) -> None:
    assert run("compress", "m", "--output", "c", "--calibration", "text.txt", way) == 0
    shown = capsys.readouterr()
    words = "read block by block" if way == "--stream-weights" else "in memory"
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
    workplace: Path, capsys: pytest.CaptureFixture[str], model: str, options: tuple[str, ...], message: str
) -> None:
    (workplace / "m.gguf").write_bytes(b"GGUF")
    pickle_only(dense_folder(workplace / "p"))
    shown = refused(workplace, capsys, model, "--output", "c", "--stream-weights", *options)
    assert "[NQ-OPTION]" in shown
    assert message in shown.replace("\n", " ")


def test_a_gpu_that_is_not_there(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = refused(workplace, capsys, "m", "--output", "c", "--calibration", "text.txt", "--device", "cuda")
    assert "[NQ-OPTION] this PyTorch sees no CUDA device" in shown


def test_a_compressed_model_and_a_foreign_file(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint(workplace / "done")
    assert "done is a NanoQuant checkpoint" in refused(workplace, capsys, "done", "--output", "c")
    assert "is not a GGUF file" in refused(workplace, capsys, "text.txt", "--output", "c")
    assert "does not exist" in refused(workplace, capsys, "absent", "--output", "c")
    assert "--output" in refused(workplace, capsys, "m")


def test_overwrite_replaces_only_what_is_ours(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "mine").mkdir()
    (workplace / "mine" / "letter.txt").write_text("dear")
    options = ("--calibration", "text.txt", "--overwrite")
    assert "was not written by nq-edge" in refused(workplace, capsys, "m", "--output", "mine", *options)
    assert "is not a folder that can be written" in refused(workplace, capsys, "m", "--output", "text.txt/c", *options)
    tiny_checkpoint(workplace / "c")
    assert run("compress", "m", "--output", "c", *options) == 0
    assert Checkpoint(workplace / "c").settings.calibration["text"] == "text.txt"


def test_a_missing_package_names_the_extra(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [module for module in sys.modules if module.startswith("nanoquant_edge.compression")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    shown = refused(workplace, capsys, "m", "--output", "c")
    assert "[NQ-MISSING] compress needs the package torch" in shown
    assert "'torch>=" in shown


def test_the_choices_are_those_of_the_recipe() -> None:
    choices = {option.name: list(getattr(option.type, "choices", [])) for option in command.params}
    assert choices["recipe"] == list(PRESETS)
    assert isinstance(PRESETS["quick"], Recipe)


def test_an_interrupted_run_is_continued_when_asked(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("compress", "m", "--output", "c", "--calibration", "text.txt", "--recipe", "official", "--device", "cpu")
    with pytest.raises(Killed):
        compress(
            "m", "c", recipe="official", calibration="text.txt", device="cpu", progress=stop_at("distilling scales")
        )
    assert not (workplace / "c").exists()
    capsys.readouterr()
    assert run(*options) == 2
    shown = capsys.readouterr().err.replace("\n", " ")
    assert "[NQ-RESUME]" in shown
    assert "2 finished blocks" in shown
    assert "--resume" in shown
    assert run(*options, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "official"
    assert Checkpoint(workplace / "c").settings.recipe["name"] == "official"
    assert not (workplace / "c.resume").exists()
