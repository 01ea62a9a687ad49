# SPDX-License-Identifier: Apache-2.0
"""`compress` and `export` killed at every kind of moment, and on a full disk: the old folder or the new one, whole.

A child process is a fork that kills itself (SIGKILL) at the Nth time it touches the file system beside its output, as
Python's audit events tell; N runs over the whole of the work.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint, CheckpointParts, write_checkpoint
from tests.tiny import random_layer, tiny_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "shutil.copyfile")


def in_child(work: Callable[[], Any], place: Path, moment: int = 0) -> tuple[int | None, int]:
    """Run `work` in a fork, killed at its Nth event beside `place`; 0 counts them.

    Returns:
        Exit status (None: killed), and the number of events when counting.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in EVENTS and any(str(place) in str(argument) for argument in arguments):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        except NqEdgeError as error:
            status = 2 if error.code == "NQ-OUTPUT" else 3
        finally:
            os.write(writer, str(count).encode())
            os._exit(status)
    os.close(writer)
    _, ended = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return (None if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended)), int(text or 0)


def content(folder: Path) -> dict[str, bytes] | None:
    """Every file of a folder by name; None when there is none. The mark of a checked bundle tells of inodes."""
    if not folder.exists():
        return None
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".nq_verified"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def killed_everywhere(work: Callable[[], Any], out: Path, prepare: Callable[[], Any]) -> set[str]:
    """Kill `work` at some 15 moments from first to last; says which states were seen."""
    prepare()
    old = content(out)
    status, events = in_child(work, out.parent)
    new = content(out)
    assert status == 0
    assert events > 10
    assert new != old
    seen = set()
    assert not list(out.parent.glob(f".{out.name}.*"))
    for moment in sorted({*range(1, events + 1, max(1, events // 10)), *range(max(1, events - 5), events + 1)}):
        prepare()
        for left in out.parent.glob(f".{out.name}.*"):  # its removal would come first and shift the moments
            shutil.rmtree(left)
        status, _ = in_child(work, out.parent, moment)
        assert status is None, f"moment {moment} of {events} was not reached"
        found = content(out)
        assert found in (old, new), f"moment {moment} of {events} left something else"
        seen.add("old" if found == old else "new")
    prepare()
    assert in_child(work, out.parent)[0] == 0  # and what killed runs left behind does not hinder the next
    assert content(out) == new
    assert [path.name for path in out.parent.glob(f".{out.name}.*")] == []
    return seen


def restore(folder: Path, files: dict[str, bytes] | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("first", [True, False], ids=["nothing-there", "overwriting"])
def test_export_killed(tmp_path: Path, first: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
    (tmp_path / "place").mkdir()
    out = tmp_path / "place/bundle"
    old = None if first else content(export_onnx(checkpoint, tmp_path / "old", dialect="onnx24").folder)

    def work() -> None:
        export_onnx(checkpoint, out, overwrite=True)

    seen = killed_everywhere(work, out, lambda: restore(out, old))
    assert "old" in seen
    if not first:
        assert seen == {"old", "new"}, "the last moments are the removal of what was replaced"
    Bundle.open(out, verify=True)


@pytest.mark.parametrize("first", [True, False], ids=["nothing-there", "overwriting"])
def test_a_checkpoint_s_writer_killed(tmp_path: Path, first: bool) -> None:
    source = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
    layers = {name: source.layer(name) for name in source.layers}
    others = {"model.norm.weight": np.ones(40, np.float16)}
    (tmp_path / "place").mkdir()
    out = tmp_path / "place/checkpoint"
    old = None if first else content(tmp_path / "c")

    def work() -> None:
        parts = CheckpointParts(source.config, source.settings, layers, others)
        write_checkpoint(out, parts, companions=source.folder, overwrite=True, shard_bytes=4000)

    assert "old" in killed_everywhere(work, out, lambda: restore(out, old))
    assert Checkpoint(out).settings.shards > 1


def on_a_small_disk(work: Callable[[], Any], limit: int) -> Callable[[], None]:
    """`work` in a process whose files may have `limit` bytes at most: writing fails as on a full disk."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()

    return limited


@pytest.mark.parametrize("limit", [0, 100, 5000, 20_000])
def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path, limit: int) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
    (tmp_path / "place").mkdir()
    out = tmp_path / "place/bundle"
    restore(out, content(export_onnx(checkpoint, tmp_path / "old", dialect="onnx24").folder))
    old = content(out)
    status, _ = in_child(on_a_small_disk(lambda: export_onnx(checkpoint, out, overwrite=True), limit), out.parent)
    assert status == 2  # NQ-OUTPUT
    assert content(out) == old
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("limit", [0, 1000, 3000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, limit: int) -> None:
    source = tiny_checkpoint(tmp_path / "place/c", num_hidden_layers=1)
    old = content(source.folder)
    layers = {name: random_layer(np.random.default_rng(1), 30, 30, 9) for name in source.layers}

    def work() -> None:
        parts = CheckpointParts(source.config, source.settings, layers, {})
        write_checkpoint(source.folder, parts, overwrite=True)

    status, _ = in_child(on_a_small_disk(work, limit), source.folder.parent)
    assert status == 2
    assert content(source.folder) == old


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        checkpoint = tiny_checkpoint(tmp_path / "c", num_hidden_layers=1)
        with pytest.raises(NqEdgeError, match="No space left") as caught:
            export_onnx(checkpoint, disk / "bundle")
        assert caught.value.code == "NQ-OUTPUT"
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
