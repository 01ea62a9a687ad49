# SPDX-License-Identifier: Apache-2.0
"""What the guide makes from code: pages of verbs, and links that leave it. `make docs` builds the whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("numpy")  # the job that checks links has none of the package's dependencies
pytest.importorskip("rich")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_verb_s_page_has_every_option_and_its_own_verbs(hooks: ModuleType) -> None:
    pages = {name: hooks.verb_page(name, command) for name, command in hooks._verbs()}
    assert "| `--bpw FLOAT` |" in pages["compress"] and "[required]" in pages["compress"]
    assert "## devices fit" in pages["devices"] and "| `-d, --device TEXT` |" in pages["devices"]
    for name, page in pages.items():
        assert page.startswith(f"# {name}\n\n    nq-edge {name} "), name


def test_links_out_of_the_guide_become_words(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notes/quality.md"))
    text = "[a](../QUALITY.md#top) [benchmarks/answers.py](../../benchmarks/answers.py) "
    text += "[here](../../README.md) [f](../figures)"
    shown = hooks.on_page_markdown(text, page=page, config={"docs_dir": str(ROOT / "docs")}, files=None)
    assert shown == "[a](../QUALITY.md#top) benchmarks/answers.py here (`README.md`) f (`docs/figures`)"


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in listed] == []
