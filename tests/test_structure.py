# SPDX-License-Identifier: Apache-2.0
"""Packages depend downwards only, and nothing depends on itself in a circle; every import counts, lazy ones too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nanoquant_edge

PACKAGE = Path(nanoquant_edge.__file__).parent

#: From the ground up. A package may import packages of lower floors, and none of its own floor.
FLOORS = [
    {"errors"},
    {"system"},
    {"formats"},
    {"models"},
    {"importers", "hf"},
    {"devices"},
    {"compression", "exporters"},
    {"deploy", "runtimes"},
    {"validation", "serving", "bench"},
    {"reports"},
    {"cli"},
    {"__init__", "__main__"},
]

#: The only places that may import PyTorch; a board loads none of them. Verbs may inside of a function.
WITH_TORCH = ("models/", "importers/", "hf/", "compression/", "validation/")

#: Most parameters of a public function beside self; what has more is missing a concept.
MOST_PARAMETERS = 7
#: A public function of so many parameters takes those from the third on by keyword, but for an `options` object.
MANY_PARAMETERS, BY_POSITION = 4, 2
#: Where that does not hold: graph builders are called as `node(operator, inputs, name)` a thousand times, and functions
#: of the mathematics have their operands in the order of the formula.
FREE_ORDER = ("compression/", "exporters/onnx/", "models/")
#: Published with three parameters by position.
PUBLISHED = ("runtimes/generator.py: __init__",)

Name = tuple[str, ...]


def _module(path: Path, root: Path) -> Name:
    return path.relative_to(root).with_suffix("").parts


def _imports(path: Path, root: Path) -> Iterator[Name]:
    """Modules of the package that a file imports anywhere, as paths below the package; `()` is the package itself."""
    here = (root.name, *path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for name in found:
            if name[0] == root.name:
                yield _file_of(name[1:], root)


def _file_of(name: Name, root: Path) -> Name:
    """The module file that a dotted name lies in: attributes are cut off, a package is its `__init__`."""
    while name and not root.joinpath(*name).with_suffix(".py").is_file() and not root.joinpath(*name).is_dir():
        name = name[:-1]
    return (*name, "__init__") if root.joinpath(*name).is_dir() else name


def graph(root: Path) -> dict[Name, set[Name]]:
    """Every module of a package, and the modules that it imports."""
    return {_module(path, root): set(_imports(path, root)) for path in sorted(root.rglob("*.py"))}


def upward(modules: dict[Name, set[Name]]) -> list[str]:
    """Imports that go to the importer's own floor, outside of its package, or above."""
    floor = {package: index for index, packages in enumerate(FLOORS) for package in packages}
    return [
        f"{'.'.join(module)} imports {'.'.join(used)}"
        for module, needs in modules.items()
        for used in needs
        if used[0] != module[0] and floor[used[0]] >= floor[module[0]]
    ]


def circle(modules: dict[Name, set[Name]]) -> list[str]:
    """A circle between the children of any one folder, each child taken as a whole; empty when there is none.

    A package's `__init__` only shows what lies inside, so it counts as the folder that its importer asked for.
    """
    folders = {module[:depth] for module in modules for depth in range(len(module))}
    for folder in sorted(folders):
        depth = len(folder)
        children: dict[str, set[str]] = {}
        for module, needs in modules.items():
            if module[:depth] == folder:
                inside = {used[depth] for used in needs if used[:depth] == folder and len(used) > depth}
                children.setdefault(module[depth], set()).update(inside - {module[depth]})
        try:
            TopologicalSorter(children).prepare()
        except CycleError as error:
            return [".".join((*folder, name)) for name in error.args[1]]
    return []


MODULES = graph(PACKAGE)


def test_every_package_has_a_floor() -> None:
    assert {module[0] for module in MODULES} <= set().union(*FLOORS)


def test_packages_depend_downwards_only() -> None:
    assert upward(MODULES) == []


def test_nothing_depends_on_itself_in_a_circle() -> None:
    assert circle(MODULES) == []


def test_pytorch_is_imported_where_it_belongs() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if place.startswith("cli/") else ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] in ("torch", "transformers") for name in names):
                found.append(place)
    assert [place for place in found if not place.startswith(WITH_TORCH)] == []


def _public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions of a module, and public methods and constructors of its public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.name == "__init__" or not node.name.startswith("_")
        ):
            yield node


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[list[str], list[str]]:
    """Parameters that may be given by position, and those that are keywords only; without self and cls."""
    given = function.args
    names = [parameter.arg for parameter in (*given.posonlyargs, *given.args)]
    return names[names[:1] in (["self"], ["cls"]) :], [parameter.arg for parameter in given.kwonlyargs]


def crowded(source: str) -> list[str]:
    """Public functions of a module with more parameters than `MOST_PARAMETERS` beside self or cls."""
    found = []
    for function in _public_functions(ast.parse(source)):
        count = sum(map(len, _parameters(function)))
        if count > MOST_PARAMETERS:
            found.append(f"{function.name} takes {count} parameters")
    return found


def by_position(source: str) -> list[str]:
    """Public functions of a module with many parameters, more than `BY_POSITION` of them by position."""
    found = []
    for function in _public_functions(ast.parse(source)):
        positions, keywords = _parameters(function)
        loose = positions[BY_POSITION:]
        if len(positions) + len(keywords) >= MANY_PARAMETERS and loose and loose != ["options"]:
            found.append(function.name)
    return found


def test_public_functions_take_few_parameters() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {words}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for words in crowded(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_many_parameters_are_given_by_keyword() -> None:
    found = [
        f"{path.relative_to(PACKAGE).as_posix()}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in by_position(path.read_text(encoding="utf-8"))
    ]
    assert [line for line in found if not line.startswith(FREE_ORDER) and line not in PUBLISHED] == []


def test_too_many_parameters_are_found_wherever_they_are() -> None:
    seven, eight = "a, b, c, d, *, e, f, g", "a, b, c, /, d, *, e, f, g, h"
    methods = f"class A:\n def __init__(self, {eight}): ...\n @classmethod\n def of(cls, {seven}): ...\n"
    assert crowded(f"def many({eight}): ...\ndef few({seven}): ...\ndef _private({eight}): ...\n{methods}") == [
        "many takes 8 parameters",
        "__init__ takes 8 parameters",
    ]


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ("a, b, c", False),
        ("a, b, *, c, d", False),
        ("self, a, b, *, c, d", False),
        ("a, b, options, *, c", False),
        ("a, b, c, d", True),
        ("a, b, c, *, d", True),
        ("self, a, b, c, *, d", True),
        ("a, b, c, /, *, d", True),
        ("a, b, options, c", True),
    ],
)
def test_what_should_be_a_keyword_is_found(parameters: str, refused: bool) -> None:
    assert by_position(f"def f({parameters}): ...\ndef _f({parameters}): ...\n") == (["f"] if refused else [])


def _package(root: Path, files: dict[str, str]) -> Path:
    folder = root / "house"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "from ..cli.app import main\n",
        "from .. import cli\n",
        "import house.cli.app\n",
        "def f():\n    from ..cli import app\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..cli.app import main\n",
    ],
)
def test_a_look_upwards_is_found_wherever_it_hides(tmp_path: Path, text: str) -> None:
    files = {"__init__.py": "", "system/__init__.py": "", "system/a.py": text, "cli/__init__.py": "", "cli/app.py": ""}
    assert upward(graph(_package(tmp_path, files)))


def test_a_circle_is_found_between_modules_and_between_folders(tmp_path: Path) -> None:
    modules = {"__init__.py": "", "a.py": "def f():\n    from . import b\n", "b.py": "from .a import f\n"}
    assert circle(graph(_package(tmp_path / "modules", modules)))
    folders = {
        "__init__.py": "",
        "x/__init__.py": "",
        "x/one.py": "from ..y import two\n",
        "x/two.py": "",
        "y/__init__.py": "",
        "y/one.py": "from ..x import two\n",
        "y/two.py": "",
    }
    assert circle(graph(_package(tmp_path / "folders", folders)))
