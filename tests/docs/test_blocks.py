# SPDX-License-Identifier: Apache-2.0
"""Every command and every program of the guide and the README runs, on a tiny model, or says why it does not.

A page's blocks run one after the other in one folder with `model` (a dense Hugging Face folder, also called MODEL),
`checkpoint`, `bundle` and `text.txt`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.command import run
from tests.docs.blocks import Block, blocks

for needed in ("onnx_ir", "onnxruntime", "transformers"):  # the job that checks the documents has none of them
    pytest.importorskip(needed)

ROOT = Path(__file__).resolve().parents[2]
#: docs/SERVING.md has tests of its own, in tests/serving/http.
PAGES = [ROOT / name for name in ("README.md", "examples/jetson.md", "docs/index.md")]
PAGES += [ROOT / f"docs/{name}.md" for name in ("DEVICES", "GENAI", "INPUTS", "TENSORRT")]
PAGES += sorted((ROOT / "docs/guide").glob("*.md"))
#: Verbs that end with 1 when something is missing or not proved, which is no fault of the command.
MAY_END_WITH_1 = {"doctor", "devices"}
NEEDS = {"--to tensorrt": "tensorrt_rtx", "--target rtx": "tensorrt_rtx"}
#: Words that are run otherwise: a shorter schedule of the same recipe, and nothing downloaded or compiled.
INSTEAD = {"MODEL": ["model"], "balanced": ["quick"], "deploy": ["deploy", "--no-wheels", "--no-native"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.compression.support import TEXT, dense_folder
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("blocks")
    dense_folder(folder / "model", max_position_embeddings=8192)
    tiny_checkpoint(folder / "checkpoint", max_position_embeddings=8192)
    for name in ("model", "checkpoint"):
        path = folder / name / "tokenizer_config.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
    export_onnx(folder / "checkpoint", folder / "bundle")
    (folder / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    return folder


def _run(block: Block, page: str) -> None:
    for words in block.commands:
        if any(name in " ".join(words) for name in NEEDS):
            pytest.importorskip(next(module for name, module in NEEDS.items() if name in " ".join(words)))
        if "--output" in words:
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        status = run(*(other for word in words for other in INSTEAD.get(word, [word])))
        allowed = {0, 1} if words[0] in MAY_END_WITH_1 else {0}
        assert status in allowed, f"{page}, line {block.line}: nq-edge {' '.join(words)} ended with {status}"
    if block.is_python:
        exec(compile(block.text.replace('"MODEL"', '"model"'), f"{page}:{block.line}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in inputs.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if not block.reason:
            for folder in ("checkpoint", "bundle") if block.is_python else ():
                shutil.rmtree(tmp_path / folder)
            _run(block, page.name)


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n\n    nq-edge inspect a \\\n      --json   # why\n    other\n\ntext\n\n```python\nx = 1\n```\n\n"
        "1. item\n\n        $ nq-edge doctor\n\n<!-- not run: no board -->\n\n    nq-edge chat b\n\n    nq-edge c\n",
        encoding="utf-8",
    )
    found = list(blocks(page))
    assert [block.commands for block in found] == [
        [["inspect", "a", "--json"]],
        [],
        [["doctor"]],
        [["chat", "b"], ["c"]],
    ]
    assert [block.is_python for block in found] == [False, True, False, False]
    assert [block.reason for block in found] == ["", "", "", "no board"]
