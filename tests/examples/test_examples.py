# SPDX-License-Identifier: Apache-2.0
"""Every program in examples/ runs as its first lines say, on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes import Generator
from tests.compression.support import dense_folder, write_text
from tests.tiny import tiny_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `checkpoint`, `bundle`, `portable` and `text.txt`."""
    folder = tmp_path_factory.mktemp("examples")
    dense_folder(folder / "model")
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    settings = folder / "checkpoint/tokenizer_config.json"
    content = json.loads(settings.read_text()) if settings.is_file() else {}
    settings.write_text(json.dumps({**content, "chat_template": TEMPLATE}))
    export_onnx(checkpoint, folder / "bundle")
    export_onnx(checkpoint, folder / "portable", portable=True)
    text = write_text(folder)
    text.write_text(text.read_text() * 3)
    return folder


def _run(*words: str, folder: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    path = f"{EXAMPLES.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # `nq-edge` is the program of the environment that runs the tests.
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(words, cwd=folder, env=environment, input=said, capture_output=True, text=True, timeout=300)


def test_compress_your_text(inputs: Path, tmp_path: Path) -> None:
    words = (
        sys.executable,
        str(EXAMPLES / "compress_your_text.py"),
        "model",
        "text.txt",
        str(tmp_path / "out"),
        "quick",
    )
    done = _run(*words, folder=inputs)
    assert done.returncode == 0, done.stderr
    assert "14 layers at" in done.stdout and len(Checkpoint(tmp_path / "out").layers) == 14


def test_chat_loop(inputs: Path) -> None:
    done = _run(sys.executable, str(EXAMPLES / "chat_loop.py"), "bundle", folder=inputs, said="Hi\nAnd then?\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("you: ") == 3


def test_stream_from_server(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("openai", "starlette", "uvicorn"):
        pytest.importorskip(needed)
    from tests.serving.running import running

    with running(inputs / "bundle") as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        done = _run(sys.executable, str(EXAMPLES / "stream_from_server.py"), "Hello", folder=inputs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_plain_onnxruntime_gives_the_same_tokens(inputs: Path) -> None:
    done = _run(sys.executable, str(EXAMPLES / "plain_onnxruntime.py"), "portable", "5", "6", "7", folder=inputs)
    assert done.returncode == 0, done.stderr
    with Generator.from_bundle(inputs / "bundle", threads=1) as generator:
        expected = list(generator.generate_step([5, 6, 7], max_new_tokens=8))
    assert [int(word) for word in done.stdout.split()] == expected


def test_use_in_transformers(inputs: Path) -> None:
    done = _run(sys.executable, str(EXAMPLES / "use_in_transformers.py"), "checkpoint", "Once", folder=inputs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once")


def test_validate_in_ci_passes_on_the_exit_status(inputs: Path, tmp_path: Path) -> None:
    script = str(EXAMPLES / "validate_in_ci.sh")
    done = _run("bash", script, "checkpoint", "bundle", "text.txt", str(tmp_path / "r.html"), folder=inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "r.html").is_file()
    (tmp_path / "short.txt").write_text("too short")
    short = _run("bash", script, "checkpoint", "bundle", str(tmp_path / "short.txt"), "r.html", folder=inputs)
    assert short.returncode == 2 and "not proved (exit status 2)" in short.stderr


def test_the_notebook_runs_from_top_to_bottom(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name in ("model", "text.txt"):
        (shutil.copytree if (inputs / name).is_dir() else shutil.copy)(inputs / name, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "outcome: pass" in str(notebook.cells[-3].outputs)


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [
        path.name for path in sorted(EXAMPLES.iterdir()) if path.name != "README.md" and path.name not in listed
    ] == []
