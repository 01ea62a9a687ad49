# SPDX-License-Identifier: Apache-2.0
"""The catalogue of error codes: complete, used, and readable."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

import nanoquant_edge
from nanoquant_edge.errors import CATALOGUE, NqEdgeError

PACKAGE = Path(nanoquant_edge.__file__).parent


def codes_in_source() -> dict[str, set[str]]:
    """Code -> files in which it stands as a string of its own, the catalogue aside."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"NQ-[A-Z-]+", node.value)
            ):
                found.setdefault(node.value, set()).add(path.name)
    return found


def test_every_code_in_use_is_in_the_catalogue_and_the_other_way_round() -> None:
    used = codes_in_source()
    assert set(used) - set(CATALOGUE) == set(), "raised but not in the catalogue"
    assert set(CATALOGUE) - set(used) == set(), "in the catalogue but never raised"


def test_every_entry_has_a_cause_and_a_remedy() -> None:
    for code, (cause, remedy) in CATALOGUE.items():
        assert re.fullmatch(r"NQ(-[A-Z]+)+", code)
        for text in (cause, remedy):
            assert len(text) > 20
            assert text.endswith(".")
            assert "\n" not in text


def test_an_error_says_what_and_what_to_do() -> None:
    error = NqEdgeError("NQ-MODEL", "m has no config.json.")
    assert (error.code, error.message, error.hint) == ("NQ-MODEL", "m has no config.json.", CATALOGUE["NQ-MODEL"][1])
    assert str(error) == f"[NQ-MODEL] m has no config.json. {CATALOGUE['NQ-MODEL'][1]}"
    assert NqEdgeError("NQ-MODEL", "m", "do this").hint == "do this"
    assert NqEdgeError("NQ-MODEL", "m", "").hint == ""


def test_an_unknown_code_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="'NQ-NEW' is not in the catalogue"):
        NqEdgeError("NQ-NEW", "m")


def test_a_message_can_be_printed_whatever_a_file_brought_into_it() -> None:
    error = NqEdgeError("NQ-MODEL", "a \x1b[2J\ud800 b\n" + "x" * 5000)
    assert error.message.startswith("a ?[2J? b\nxxx")
    assert error.message.endswith("x...")
    assert len(error.message) < 2100
    error.message.encode("utf-8", "strict")


def test_the_page_of_codes_is_current() -> None:
    errors_page = runpy.run_path(str(PACKAGE.parent / "docs/errors_page.py"))["errors_page"]
    page = (PACKAGE.parent / "docs/ERRORS.md").read_text(encoding="utf-8")
    assert page == errors_page(), "run: python docs/errors_page.py > docs/ERRORS.md"
    for code in CATALOGUE:
        assert page.count(f"\n## {code}\n") == 1
