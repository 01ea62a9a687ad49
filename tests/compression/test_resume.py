# SPDX-License-Identifier: Apache-2.0
"""An interrupted compression goes on where it was and ends with the same bytes, whatever moment it was killed at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
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
    script = run.folder / "child.py"
    script.write_text(
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.compression.support import short_recipe\n"
        "from nanoquant_edge.compression import compress\n"
        "model, output, text = sys.argv[1:]\n"
        "compress(model, output, recipe=short_recipe(refresh_inputs=True), calibration=text, device='cpu', bpw=2.0,\n"
        "         compute_dtype='float32', resume=True)\n"
    )
    output, state = run.folder / "killed", run.state("killed")
    command = [sys.executable, str(script), str(run.model), str(output), str(run.text)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (state / "block-0000.safetensors").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
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


@pytest.mark.parametrize("damage", ["truncated", "empty", "shape", "names", "json"])
def test_a_damaged_state_is_refused(run: Run, interrupted: str, damage: str) -> None:
    folder = run.state(interrupted)
    path = folder / "block-0000.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "json":
        (folder / "run.json").write_text("{")
    else:
        tensors = load_file(path)
        name = next(iter(tensors))
        tensors[name if damage == "shape" else "other"] = torch.zeros(3)
        save_file(tensors, path)
    refused(run, interrupted, resume=True)


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
