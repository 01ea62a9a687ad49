# SPDX-License-Identifier: Apache-2.0
"""`nq-edge chat` through a pipe and at a real terminal."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoquant_edge.cli.chat_terminal import shown
from tests.command import run

pytest.importorskip("onnxruntime")

#: The command with a model that takes 20 ms a token and never ends by itself, so that there is time to interrupt it.
SLOW = """
import sys, time
from nanoquant_edge.runtimes.onnxruntime.slots import OnnxRuntimeSlots
from nanoquant_edge.serving import opening
forward = OnnxRuntimeSlots.forward
OnnxRuntimeSlots.forward = lambda self, rows: (time.sleep(0.02), forward(self, rows))[1]
opening.read_eos_ids = lambda *_: frozenset()
from nanoquant_edge.cli import main
main(sys.argv[1:])
"""


class Screen:
    """A program at a terminal of its own."""

    def __init__(self, arguments: list[str], terminal: str) -> None:
        import pty

        self.child, self.end = pty.fork()
        if self.child == 0:
            os.environ.update(TERM=terminal, PROMPT_TOOLKIT_NO_CPR="1", OMP_NUM_THREADS="1")
            os.execv(sys.executable, [sys.executable, "-c", SLOW, *arguments])
        self.seen = ""

    def wait(self, text: str, seconds: float = 60) -> None:
        """Read until a text is shown."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.read(0.1)

    def read(self, seconds: float) -> None:
        """Read what is shown now."""
        if select.select([self.end], [], [], seconds)[0]:
            self.seen += os.read(self.end, 65536).decode("utf-8", "replace")

    def type(self, text: str) -> None:
        """Type, once nothing is left of what was seen."""
        self.seen = ""
        os.write(self.end, text.encode())

    def status(self) -> int:
        """The exit status."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            try:
                self.read(0.05)
            except OSError:  # the other end is closed
                time.sleep(0.05)
        raise AssertionError(self.seen)

    def close(self) -> None:
        """End it, whatever it does."""
        try:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.end)


@pytest.fixture(params=["dumb", "xterm"])
def screen(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Screen]:
    if request.param == "xterm":
        pytest.importorskip("prompt_toolkit")
    opened = Screen(["chat", str(tiny_bundle), "-t", "1", "--no-spin", "-n", "200", "--seed", "1"], request.param)
    yield opened
    opened.close()


def test_an_interrupt_stops_the_answer_and_a_second_one_leaves(screen: Screen) -> None:
    screen.wait(">")
    enter = "\r"  # what the key sends; a plain terminal makes a line feed of it
    screen.type(f"The quick brown fox{enter}")
    time.sleep(0.5)
    screen.read(0.1)
    os.write(screen.end, b"\x03")
    screen.wait("stopped")
    screen.wait(">")
    screen.type(f"/stats{enter}")
    screen.wait("context: ")
    assert "all 1 answers" in screen.seen
    os.write(screen.end, b"\x03")
    assert screen.status() == 0


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_lines_of_a_pipe_are_messages_and_answers_alone_are_printed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "chat.json"
    feed(monkeypatch, f"The quick\\\nbrown\n\n/retry\n/stats\n/save {saved}\n")
    assert run("chat", tiny_bundle, "-t", "1", "--greedy", "-n", "6", "--system", "Be short.") == 0
    out, said = capfd.readouterr()
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "The quick\nbrown"
    assert out.count("\n") >= 2 and "> " not in said
    assert "all 2 answers" in said and f"written to {saved}" in said
    feed(monkeypatch, f"x\n/save {saved}\n")
    assert run("chat", tiny_bundle, "-t", "1", "-n", "2") == 2
    assert "NQ-OUTPUT" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "code"),
    [("/sytsem x\n", "NQ-OPTION"), ("/save\n", "NQ-OPTION"), ("/retry\n", "NQ-PROMPT"), ("x" * 3000, "NQ-PROMPT")],
)
def test_mistakes_in_a_pipe_end_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str, code: str
) -> None:
    feed(monkeypatch, text)
    assert run("chat", tiny_bundle, "-t", "1") == 2
    assert f"[{code}]" in capfd.readouterr().err


def test_answers_keep_to_a_form(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llguidance")
    feed(monkeypatch, "How many?\n")
    schema = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    assert run("chat", tiny_bundle, "-t", "1", "--regex", "[0-9]{3}") == 0
    assert capfd.readouterr().out.strip().isdigit()
    assert run("chat", tiny_bundle, "--json-schema", schema, "--regex", "x") == 2
    assert "exclude each other" in capfd.readouterr().err


def test_a_model_cannot_move_the_cursor() -> None:
    assert shown("a\x1b[2J\r\nb\t\x07é") == "a?[2J?\nb\t?é"
