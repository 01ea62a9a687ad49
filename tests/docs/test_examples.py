# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run, beside tiny folders of the names that they use.

`model` is a dense Hugging Face folder, `checkpoint` a compressed one, `bundle` an exported one.
"""

from __future__ import annotations

import doctest
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanoquant_edge

for needed in ("onnx_ir", "onnxruntime", "transformers"):  # the job that checks the documents has none of them
    pytest.importorskip(needed)

PACKAGE = Path(nanoquant_edge.__file__).parent
#: What an example writes and others read: it runs without that folder.
WRITTEN = {"compress": "checkpoint", "export_onnx": "bundle"}


def examples() -> Iterator[doctest.DocTest]:
    """Every docstring of the package that has an example."""
    finder = doctest.DocTestFinder()
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
            yield from (test for test in finder.find(importlib.import_module(name), name) if test.examples)


EXAMPLES = {test.name.removeprefix(f"{PACKAGE.name}."): test for test in examples()}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.compression.support import dense_folder
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("examples")
    dense_folder(folder / "model")
    tiny_checkpoint(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "bundle")
    return folder


@pytest.fixture
def work_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the example's own, the current one, with the inputs."""
    for folder in ("model", "checkpoint", "bundle"):
        shutil.copytree(inputs / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_shows(name: str, work_folder: Path) -> None:
    test = EXAMPLES[name]
    if (output := WRITTEN.get(name.rpartition(".")[2])) is not None:
        shutil.rmtree(work_folder / output)
    said: list[str] = []
    outcome = doctest.DocTestRunner().run(test, out=said.append)
    assert not outcome.failed, "".join(said)


@pytest.mark.parametrize("name", nanoquant_edge.__all__)
def test_everything_public_has_an_example(name: str) -> None:
    """Errors, versions and what others return need none."""
    if name not in ("__version__", "NqEdgeError", "Generation"):
        public = getattr(nanoquant_edge, name)
        assert f"{public.__module__}.{public.__qualname__}".removeprefix(f"{PACKAGE.name}.") in EXAMPLES
