# SPDX-License-Identifier: Apache-2.0
"""An interrupted compression goes on where it was and ends with the same bytes, whatever moment it was killed at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.resume import RunState
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.compression.support import ORACLE, Killed, dense_folder, short_recipe, stop_at, write_text

BLOCKS = 3


class Run:
    """A tiny model, a text, and a whole run to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = dense_folder(folder / "m", num_hidden_layers=BLOCKS, **ORACLE)
        self.text = write_text(folder)
        self.compress("whole")

    def compress(self, name: str, **options: Any) -> Checkpoint:
        settings = {"recipe": short_recipe(refresh_inputs=True), "calibration": self.text, "device": "cpu", **options}
        return compress(self.model, self.folder / name, compute_dtype="float32", bpw=2.0, **settings)

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "nanoquant.safetensors").read_bytes()

    def state(self, name: str) -> Path:
        return self.folder / f"{name}.resume"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize(
    ("words", "files", "blocks"),
    [("importances", 0, 0), ("block 3 of 3", 4, 2), ("distilling scales", 5, 3)],
)
def test_a_run_stopped_anywhere_ends_with_the_same_bytes(run: Run, words: str, files: int, blocks: int) -> None:
    output = words.replace(" ", "-")
    with pytest.raises(Killed):
        run.compress(output, progress=stop_at(words))
    assert not (run.folder / output).exists()
    assert len(list(run.state(output).glob("*"))) == files
    seen: list[str] = []
    run.compress(output, resume=True, progress=lambda _fraction, text: seen.append(text))
    assert run.weights(output) == run.weights("whole")
    # Nothing is done twice.
    assert sum("from the interrupted run" in text for text in seen) == blocks
    assert sum("q_proj" in text for text in seen) == BLOCKS - blocks
    assert (files > 0) == any(f"{blocks} finished blocks" in text for text in seen)
    assert not run.state(output).exists()


def test_a_killed_process_goes_on(run: Run) -> None:
    """kill -9 in the middle of a block, then on in another process."""
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from nanoquant_edge.compression import compress\n"
        "from tests.compression.support import short_recipe\n"
        "torch.set_num_threads(1)\n"
        "model, output, text = map(Path, sys.argv[1:])\n"
        "def show(_fraction, words):\n"
        "    if words.startswith('block 2 of 3') and 'o_proj' in words:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "compress(model, output, recipe=short_recipe(refresh_inputs=True), calibration=text, device='cpu', bpw=2.0,\n"
        "         compute_dtype='float32', progress=show)\n"
    )
    output = run.folder / "killed"
    command = [sys.executable, "-c", script, *map(str, (run.model, output, run.text))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    child = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    assert (run.state("killed") / "block-0000.safetensors").is_file()
    assert not output.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run.compress("killed", resume=True)
        run.compress("one_thread")
    finally:
        torch.set_num_threads(threads)
    assert run.weights("killed") == run.weights("one_thread")


@pytest.fixture(scope="module")
def stopped(run: Run) -> Path:
    """The state after two blocks."""
    with pytest.raises(Killed):
        run.compress("stopped", progress=stop_at("block 3 of 3"))
    return run.state("stopped")


@pytest.fixture
def interrupted(run: Run, stopped: Path, tmp_path: Path) -> str:
    """Name of an output whose run was stopped after two blocks."""
    shutil.copytree(stopped, run.state(tmp_path.name))
    return tmp_path.name


def refused(run: Run, name: str, **options: Any) -> NqEdgeError:
    with pytest.raises(NqEdgeError) as caught:
        run.compress(name, **options)
    assert caught.value.code == "NQ-RESUME"
    return caught.value


def test_an_interrupted_run_is_not_thrown_away_unasked(run: Run, interrupted: str) -> None:
    error = refused(run, interrupted)
    assert "2 finished blocks" in error.message
    assert " MB" in error.message
    assert "--resume" in error.hint
    run.compress(interrupted, overwrite=True)
    assert run.weights(interrupted) == run.weights("whole")
    assert not run.state(interrupted).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"recipe": short_recipe(refresh_inputs=True, admm_steps=9)}, "admm_steps was 8, now it is 9"),
        ({"calibration": None}, "calibration text was '"),
    ],
)
def test_another_run_s_state_is_not_continued(run: Run, interrupted: str, changes: dict, message: str) -> None:
    assert message in refused(run, interrupted, resume=True, **changes).message


def change_norm(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.01}))


def change_order(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].flip(0).contiguous()}, model / "model.safetensors", {"format": "pt"})


def change_one_bit(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"].view(torch.int32)[3] ^= 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("change", [change_norm, change_order, change_one_bit])
def test_another_model_s_state_is_not_continued(
    run: Run, interrupted: str, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(run.model, tmp_path / "m")
    change(tmp_path / "m")
    options = {"recipe": short_recipe(refresh_inputs=True), "calibration": run.text, "device": "cpu", "bpw": 2.0}
    with pytest.raises(NqEdgeError, match="belongs to another run: model was") as caught:
        compress(tmp_path / "m", run.folder / interrupted, compute_dtype="float32", resume=True, **options)
    assert caught.value.code == "NQ-RESUME"


@pytest.mark.parametrize("damage", ["truncated", "empty", "shape", "names", "values", "note", "other block"])
def test_a_damaged_block_is_refused(run: Run, interrupted: str, damage: str) -> None:
    folder = run.state(interrupted)
    path = folder / "block-0000.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other block":
        shutil.copy(folder / "block-0001.safetensors", path)
    else:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
        tensors = load_file(path)
        name = "self_attn.q_proj.scale_in"
        if damage == "shape":
            tensors[name] = torch.zeros(3)
        elif damage == "names":
            tensors["other"] = torch.zeros(3)
        elif damage == "values":
            tensors[name][0] += 1
        else:
            notes["error"] = "0.5"
        save_file(tensors, path, notes)
    assert "block-0000.safetensors is damaged" in refused(run, interrupted, resume=True).message


def test_a_block_of_another_run_is_refused(run: Run, interrupted: str) -> None:
    with pytest.raises(Killed):
        run.compress("other", seed=1, progress=stop_at("block 2 of 3"))
    shutil.copy(run.state("other") / "block-0000.safetensors", run.state(interrupted) / "block-0000.safetensors")
    assert (
        "block-0000.safetensors is damaged or belongs to another run" in refused(run, interrupted, resume=True).message
    )


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("format", 1), ("sha256", "0" * 64)])
def test_a_state_whose_description_was_changed_is_refused(run: Run, interrupted: str, key: str, value: object) -> None:
    path = run.state(interrupted) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert "holds something else, or that of another version" in refused(run, interrupted, resume=True).message


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "run.json"])
def test_what_is_no_state_of_ours_stays_as_it_is(run: Run, tmp_path: Path, kind: str, overwrite: bool) -> None:
    mine = run.state(tmp_path.name)
    if kind == "file":
        mine.write_text("dear")
    elif kind == "link":
        mine.symlink_to(tmp_path)
    else:
        mine.mkdir()
        (mine / ("letter" if kind == "folder" else "run.json")).write_text("{}")
    before = sorted(mine.rglob("*"))
    for resume in (False, True):
        refused(run, tmp_path.name, overwrite=overwrite, resume=resume)
    assert sorted(mine.rglob("*")) == before
    assert kind != "file" or mine.read_text() == "dear"


def test_only_files_of_the_state_are_removed(run: Run, interrupted: str) -> None:
    letter = run.state(interrupted) / "letter.txt"
    letter.write_text("dear")
    run.compress(interrupted, resume=True)
    assert run.weights(interrupted) == run.weights("whole")
    assert list(run.state(interrupted).iterdir()) == [letter]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_two_runs_do_not_share_a_state(run: Run, interrupted: str, options: dict[str, bool]) -> None:
    state = RunState(run.state(interrupted), {}, overwrite=True)
    with state.in_use():
        message = refused(run, interrupted, **options).message
        assert "is in use: another run for the same output goes on" in message
    assert not run.state(interrupted).exists()  # it kept nothing


def test_a_second_run_that_began_at_the_same_moment_is_refused(run: Run, tmp_path: Path) -> None:
    first, second = (RunState(tmp_path / "c.resume", {"seed": seed}) for seed in range(2))
    with first.in_use():
        first.write("start.safetensors", {"windows": torch.zeros(2)})
        with pytest.raises(NqEdgeError, match="is in use") as caught, second.in_use():
            pass
        assert caught.value.code == "NQ-RESUME"
    assert (tmp_path / "c.resume" / "start.safetensors").is_file()
    with pytest.raises(NqEdgeError, match="holds an interrupted run"), second.in_use():
        pass


def test_a_run_that_kept_nothing_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="need at least"):
        options = {"recipe": short_recipe(windows=4000), "calibration": run.text, "device": "cpu"}
        compress(run.model, tmp_path / "deep" / "er" / "c", **options)
    assert not list(tmp_path.iterdir())


def test_half_a_file_is_never_taken_for_a_whole_one(run: Run, interrupted: str) -> None:
    folder = run.state(interrupted)
    (folder / ".block-0002.safetensors.partial").write_bytes(b"half")
    run.compress(interrupted, resume=True)
    assert run.weights(interrupted) == run.weights("whole")


def test_a_full_disk_is_one_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("nanoquant_edge.compression.resume.save_file", full)
        with pytest.raises(NqEdgeError, match="No space left") as caught:
            run.compress("full")
    assert caught.value.code == "NQ-OUTPUT"
    shutil.rmtree(run.state("full"), ignore_errors=True)


def test_the_state_says_what_it_is(run: Run, interrupted: str) -> None:
    found = json.loads((run.state(interrupted) / "run.json").read_text())
    assert found["recipe"]["admm_steps"] == 8
    assert found["bpw"] == 2.0
    assert len(found["model"]) == 64
    assert RunState().describe() == "no state"
