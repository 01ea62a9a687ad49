# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import run


def _run(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from nanoquant_edge.cli import main; main()", "generate", *map(str, arguments)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_the_text_goes_to_standard_output_and_the_figures_to_standard_error(tiny_bundle: Path) -> None:
    done = _run(tiny_bundle, "--prompt", "The quick", "-n", "8", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 0
    figures = done.stderr.decode()
    assert "+ 8 tokens (length)" in figures
    assert "kernel nanoquant" in figures


def test_prompts_from_option_file_and_standard_input_are_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    text = "Größe 東京"
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    options = (tiny_bundle, "-n", "6", "--json", "--temperature", "0.8", "--seed", "3", "--top-k", "50", "-t", "1")
    ways = [
        _run(*options, "-p", text),
        _run(*options, "--prompt-file", path),
        _run(*options, stdin=text.encode()),
    ]
    found = [json.loads(way.stdout) for way in ways]
    assert len({tuple(entry["ids"]) for entry in found}) == 1
    assert found[0]["finish_reason"] == "length"
    assert found[0]["kernel"] == "nanoquant"


def test_a_chat_has_a_longer_prompt(tiny_bundle: Path) -> None:
    plain, chat, system = (
        json.loads(_run(tiny_bundle, "-p", "Hi", "-n", "1", "--json", *more).stdout)["prompt_tokens"]
        for more in ((), ("--chat",), ("--system", "Be brief."))
    )
    assert plain < chat < system


def test_more_threads_than_processors_are_told(tiny_bundle: Path) -> None:
    done = _run(tiny_bundle, "-p", "The", "-n", "2", "-t", "1000")
    assert done.returncode == 0
    assert b"note: 1000 threads were asked for; this process may use" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "x", "--temperature", "-1"), "NQ-OPTION"),
        (("-p", "x", "-n", "0"), "NQ-OPTION"),
        (("-p", "x", "--threads", "0"), "NQ-OPTION"),
        (("-p", "x", "--prompt-file", "y"), "exclude each other"),
        (("--prompt-file", "/does/not/exist"), "NQ-PROMPT"),
        (("-p", "word " * 300), "NQ-PROMPT"),
    ],
)
def test_errors_are_one_message_and_status_2(arguments: tuple[str, ...], message: str, tiny_bundle: Path) -> None:
    done = _run(tiny_bundle, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_a_prompt_that_is_not_utf8_and_a_folder_that_is_no_bundle_are_errors(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _run(tiny_bundle, stdin=b"\xff\xfe")
    assert (done.returncode, b"not UTF-8" in done.stderr) == (2, True)
    done = _run(tmp_path, "-p", "x")
    assert (done.returncode, b"NQ-BUNDLE" in done.stderr) == (2, True)


def test_the_portable_body_runs_only_when_allowed(portable_bundle: Path, tmp_path: Path) -> None:
    arguments = (portable_bundle, "-p", "x", "-n", "2", "--verify")
    refused = _run(*arguments, NQ_EDGE_NATIVE_DIR=str(tmp_path))
    assert (refused.returncode, b"--allow-portable" in refused.stderr) == (2, True)
    allowed = _run(*arguments, "--allow-portable", NQ_EDGE_NATIVE_DIR=str(tmp_path))
    assert (allowed.returncode, b"kernel portable" in allowed.stderr) == (0, True)


def test_the_text_keeps_to_a_form(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "form.lark").write_text('start: "yes" | "no"')
    common = ("generate", tiny_bundle, "-p", "The", "-t", "1", "-n", "40", "--json")
    for given in (json.dumps(schema), tmp_path / "schema.json"):
        assert run(*common, "--json-schema", given) == 0
        found = json.loads(capfd.readouterr().out)
        assert json.loads(found["text"])["n"] in (1, 2) and found["finish_reason"] == "stop"
    assert run(*common, "--grammar", tmp_path / "form.lark", "--temperature", "2") == 0
    assert json.loads(capfd.readouterr().out)["text"] in ("yes", "no")
    for wrong in (
        ("--regex", "(a"),
        ("--json-schema", tmp_path / "none"),
        ("--json-schema", "{"),
        ("--grammar", tmp_path),
    ):
        assert run(*common, *wrong) == 2
        assert "[NQ-GRAMMAR]" in capfd.readouterr().err


@pytest.mark.parametrize(
    "more", [(), ("--chat", "--temperature", "0.7", "--seed", "5"), ("--regex", "[a-z ]{4,12}")], ids=str
)
def test_guessed_tokens_do_not_change_the_text(more: tuple[str, ...], tiny_bundle: Path) -> None:
    pytest.importorskip("llguidance")
    options = (tiny_bundle, "-p", "The quick brown fox over the quick brown", "-n", "24", "--json", "-t", "1", *more)
    plain, drafted = (json.loads(_run(*options, "--draft", draft).stdout) for draft in ("none", "ngram"))
    same = ("text", "ids", "finish_reason", "prompt_tokens", "kernel")
    assert {name: plain[name] for name in same} == {name: drafted[name] for name in same}
