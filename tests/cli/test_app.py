# SPDX-License-Identifier: Apache-2.0
"""The command itself: help at once and without heavy imports, one message and status 2 for errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

import click
import pytest

from nanoquant_edge.cli import app as app_module
from nanoquant_edge.cli import main
from nanoquant_edge.errors import NqEdgeError
from tests.command import run

HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_ir", "rich", "safetensors", "tokenizers", "torch", "transformers")
WRITTEN = [verb for verb in app_module.VERBS if importlib.util.find_spec(f"nanoquant_edge.cli.{verb}")] + ["import"]


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("compress", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom nanoquant_edge.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for verb, text in app_module.VERBS.items():
        assert verb in shown
        assert text.split(".")[0][:30] in shown


@pytest.mark.parametrize("verb", WRITTEN)
def test_every_verb_has_help_with_a_sentence_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"nq-edge {verb}" in shown
    assert "\n\n  " in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("nq-edge 0.")


@pytest.mark.parametrize("arguments", [("compres",), ("--nope",), ("inspect", "--nope")])
def test_unknown_words_are_usage_errors(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert arguments[-1] in shown
    assert "Traceback" not in shown


def fake_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("inspect")
    def command() -> None:
        """Fail."""
        raise error

    module = types.ModuleType("nanoquant_edge.cli.inspect")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nanoquant_edge.cli.inspect", module)


def test_an_error_is_one_message_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, NqEdgeError("NQ-MODEL", "the model is odd.", "Mend it."))
    assert run("inspect") == 2
    out = capsys.readouterr()
    assert out.err == "nq-edge: [NQ-MODEL] the model is odd.\n  Mend it.\n"
    assert out.out == ""


def test_an_interruption_is_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, KeyboardInterrupt())
    assert run("inspect") == 1
    assert "Aborted" in capsys.readouterr().err


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main(["inspect"])


def test_sigterm_unwinds_with_status_143() -> None:
    script = (
        "import contextlib, os, signal, sys, types, click\n"
        "from nanoquant_edge.cli import app\n"
        "@click.command()\n"
        "def command():\n"
        "    with contextlib.ExitStack() as stack:\n"
        "        stack.callback(lambda: print('closed', flush=True))\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "sys.modules['nanoquant_edge.cli.inspect'] = types.SimpleNamespace(command=command)\n"
        "app.main(['inspect'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "closed\n", "")
