# SPDX-License-Identifier: Apache-2.0
"""What a user's type checker sees of the package: the real types, and no name that is not there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import nanoquant_edge
from nanoquant_edge.runtimes.options import OpenKeywords, OpenOptions
from nanoquant_edge.validation.options import ValidationKeywords, ValidationOptions

pytest.importorskip("mypy")

#: Packages whose public names are imported when first used.
LAZY = ["nanoquant_edge", *(f"nanoquant_edge.exporters.{name}" for name in ("onnx", "tensorrt", "genai"))]
#: Libraries whose own types take minutes to read and are not asked for here.
SKIPPED = [
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "tokenizers",
    "safetensors",
    "rich",
    "jinja2",
    "scipy",
]

EXAMPLE = """
from nanoquant_edge import Generator, NqEdgeError, OpenOptions, SamplingConfig, ValidationOptions, validate

def text(folder: str) -> str:
    try:
        with Generator.from_bundle(folder, OpenOptions(threads=2)) as generator:
            for piece in generator.stream("The", stop="."):
                print(piece.upper())
            ids: list[int] = list(generator.generate_step(generator.encode("The")))
            result = generator.generate("The", sampling=SamplingConfig(temperature=0.7), max_new_tokens=len(ids))
            rate: float = result.decode_tps
            return f"{result.text} {rate}"
    except NqEdgeError as error:
        return error.code

report = validate("bundle", options=ValidationOptions(windows=4))
status: str = report.steps["logits"].status
"""

#: A line that is wrong, and the code of mypy's error for it.
WRONG = {
    "from nanoquant_edge import Generater": "attr-defined",
    "from nanoquant_edge.exporters.onnx import export_onxx": "attr-defined",
    "SamplingConfig(temprature=1.0)": "call-arg",
    "OpenOptions(threads='two')": "arg-type",
    "Generator.from_bundle(5)": "arg-type",
    "Generator.from_bundle('x', treads=2)": "call-arg",
    "validate('b', windows='four')": "arg-type",
    "length: int = Generator.from_bundle('x').generate('x').text": "assignment",
    "validate('b').steps['logits'].statuss": "attr-defined",
}


def _mypy(folder: Path, program: str) -> list[str]:
    """Errors of mypy's strict mode, each a line of text."""
    (folder / "example.py").write_text(program)
    skipped = ",".join(f"{name}.*" for name in SKIPPED)
    (folder / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\nignore_missing_imports = True\n[mypy-{skipped}]\nfollow_imports = skip\n"
    )
    root = str(Path(nanoquant_edge.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", ".cache", "example.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"MYPYPATH": root, "PATH": ""},
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("example.py") and " error: " in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("types")


def test_an_example_is_right_and_mistakes_are_found(folder: Path) -> None:
    lines = EXAMPLE.splitlines()
    found = {}
    for error in _mypy(folder, "\n".join([*lines, *WRONG])):
        number, code = int(error.split(":")[1]), error.rsplit("[", 1)[1].rstrip("]")
        found[(lines + list(WRONG))[number - 1]] = code
    assert found == WRONG  # and no line of the example


def test_every_public_name_has_a_type(folder: Path) -> None:
    imports = [f"import {module}" for module in LAZY]
    names = [(module, name) for module in LAZY for name in importlib.import_module(module).__all__]
    # What mypy takes for Any has every attribute.
    uses = [f"{module}.{name}.no_such_attribute" for module, name in names]
    errors = _mypy(folder, "\n".join([*imports, *uses]))
    seen = {int(error.split(":")[1]) - len(imports) - 1 for error in errors if "no_such_attribute" in error}
    assert [uses[index] for index in range(len(uses)) if index not in seen] == []


OPTIONS = [(OpenOptions, OpenKeywords), (ValidationOptions, ValidationKeywords)]


@pytest.mark.parametrize(("options", "keywords"), OPTIONS)
def test_keywords_are_the_fields_of_the_options(options: Any, keywords: Any) -> None:
    named = {name: getattr(kind, "__forward_arg__", kind) for name, kind in keywords.__annotations__.items()}
    assert {field.name: field.type for field in fields(options)} == named


@pytest.mark.parametrize("module", LAZY)
def test_every_public_name_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = loaded.no_such_name
