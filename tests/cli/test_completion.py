# SPDX-License-Identifier: Apache-2.0
"""The completion scripts, in the shells that they are for."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoquant_edge.cli.app import VERBS
from tests.command import run

ROOT = Path(__file__).parents[2]

# Says what it was called with, so that a shell's Tab can be told from what it typed; completes as the real one.
_PROGRAM = """#!/bin/sh
if [ -z "$_NQ_EDGE_COMPLETE" ]; then echo "called: $*"; exit; fi
exec '{python}' -m nanoquant_edge
"""

#: What is typed, and all that the shell may offer.
OFFERS = [
    ("nq-edge ", list(VERBS)),
    ("nq-edge de", ["devices", "deploy", "demo"]),
    ("nq-edge devices ", ["fit", "show"]),
    ("nq-edge doctor --", ["--json", "--help"]),
    ("nq-edge doctor --js", ["--json"]),
    ("nq-edge compress --preset q", ["quick"]),
    ("nq-edge import x --ba", ["--base"]),
    ("nq-edge completion ", ["bash", "zsh", "fish"]),
    ("nq-edge nothing", []),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `nq-edge` is on the path, and no start-up file of the user is read."""
    program = tmp_path / "bin/nq-edge"
    program.parent.mkdir()
    program.write_text(_PROGRAM.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def _shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("completion", shell) == 0
    path = folder / f"completion.{shell}"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


@pytest.mark.parametrize(("typed", "offered"), OFFERS, ids=[typed for typed, _ in OFFERS])
def test_bash_offers(
    typed: str, offered: list[str], environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As readline calls the function that the script registers for the program."""
    words = typed.split(" ")
    program = f"""
        source '{_script("bash", tmp_path, capsys)}'
        registered=$(complete -p nq-edge) || exit 3
        [[ $registered =~ -F\\ ([^ ]+) ]] || exit 4
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        "${{BASH_REMATCH[1]}}" nq-edge '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = [_shell("bash"), "--norc", "--noprofile", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered


@pytest.mark.parametrize(("typed", "offered"), OFFERS, ids=[typed for typed, _ in OFFERS])
def test_fish_offers(
    typed: str, offered: list[str], environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = f"source '{_script('fish', tmp_path, capsys)}'; complete --do-complete '{typed}'"
    command = [_shell("fish"), "--no-config", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()) == sorted(offered)


@pytest.mark.parametrize(
    ("shell", "options", "before"),
    [
        ("bash", ["--norc", "--noprofile"], ""),
        ("zsh", ["-f"], "autoload -Uz compinit; compinit -u -D; "),
    ],
    ids=["bash", "zsh"],
)
def test_tab_completes_at_a_terminal(
    shell: str,
    options: list[str],
    before: str,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = _script(shell, tmp_path, capsys)
    (tmp_path / "checkpoint-of-mine").mkdir()
    with _terminal([_shell(shell), *options, "-i"], environment, tmp_path) as terminal:
        _type(terminal, f"{before}source '{script}'; echo rea''dy\n", "ready")
        _type(terminal, "nq-edge docto\t--js\t\n", "called: doctor --json")
        _type(terminal, "nq-edge inspect checkp\t\n", "called: inspect checkpoint-of-mine")


@contextlib.contextmanager
def _terminal(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[int]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder, start_new_session=True
    )
    os.close(theirs)
    try:
        yield ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _type(terminal: int, keys: str, expected: str) -> None:
    """Press keys, and wait for what they must bring."""
    os.write(terminal, keys.encode())
    shown = ""
    end = time.monotonic() + 600
    while expected not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 65536).decode(errors="replace")
