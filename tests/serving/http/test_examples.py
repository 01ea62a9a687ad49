# SPDX-License-Identifier: Apache-2.0
"""Every example of docs/SERVING.md does what it shows, on a tiny model: programs, calls of curl, and commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanoquant_edge.cli.serve import command as serve
from tests.command import run
from tests.docs.blocks import Block, blocks

PAGE = Path(__file__).resolve().parents[3] / "docs/SERVING.md"
BLOCKS = {
    f"line {block.line}": block
    for block in blocks(PAGE)
    if block.is_python or "nq-edge" in block.text or "curl" in block.text
}


@pytest.mark.parametrize("name", BLOCKS)
def test_an_example(
    name: str, address: str, roomy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = BLOCKS[name]
    (tmp_path / "bundle").symlink_to(roomy_bundle)
    (tmp_path / "key").write_text("0123456789abcdef\n")
    monkeypatch.chdir(tmp_path)
    if block.is_python:
        for needed in ("openai", "llguidance"):
            pytest.importorskip(needed)
        assert _printed(block, address)
    elif "curl" in block.text:
        if shutil.which("curl") is None:
            pytest.skip("there is no curl")
        text = block.text.replace("http://127.0.0.1:8000", address).replace("curl ", "curl -sSf ")
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
        if "-N" in text:
            assert done.stdout.endswith("data: [DONE]\n\n") and '"usage"' in done.stdout
        else:
            assert json.loads(done.stdout)["object"] in ("list", "chat.completion")
    for words in block.commands:
        if words[0] == "serve":
            with serve.make_context("serve", words[1:]):  # it would go on until it is told to end
                pass
        else:
            pytest.importorskip("llguidance")
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
            assert run(*words, "-t", "1", "-n", "40") == 0


def _printed(block: Block, address: str) -> str:
    code = block.text.replace("http://127.0.0.1:8000", address)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(code, f"SERVING.md:{block.line}", "exec", dont_inherit=True), {"__name__": "__main__"})
    return shown.getvalue()


def test_the_examples_are_found() -> None:
    assert sum(block.is_python for block in BLOCKS.values()) == 3 and len(BLOCKS) >= 9
    assert os.fspath(PAGE).endswith("SERVING.md")
