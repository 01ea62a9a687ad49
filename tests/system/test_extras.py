# SPDX-License-Identifier: Apache-2.0
"""Hints name packages that an index has, for every extra, and what is asked for can be parsed by pip."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

import nanoquant_edge
from nanoquant_edge.system.extras import install_command

PACKAGE = Path(nanoquant_edge.__file__).parent


def test_the_packages_of_the_extra_are_named() -> None:
    assert install_command("cpu") == "pip install 'onnxruntime>=1.23'"
    assert "'torch>=2.11' 'transformers>=5.23'" in install_command("compress")


def test_what_is_built_on_the_spot_gets_its_tools_first() -> None:
    assert install_command("rtx").startswith(
        "pip install wheel setuptools && pip install --no-build-isolation 'tensorrt"
    )


@pytest.mark.parametrize("extra", ["cpu", "cuda", "compress", "export", "rtx", "tensorrt", "devices", "plots"])
def test_no_hint_asks_an_index_for_this_package(extra: str) -> None:
    words = shlex.split(install_command(extra))
    assert words[:2] == ["pip", "install"] and len(words) > 2
    assert not [word for word in words if word.startswith("nanoquant")]


def test_a_package_that_is_not_installed_names_its_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    assert install_command("cpu") == f"pip install '{PACKAGE.parent.resolve()}[cpu]'"


def test_no_message_writes_the_command_by_hand() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "extras.py"}
    assert [str(path) for path, text in texts.items() if re.search(r"pip install '?nanoquant", text)] == []


def test_every_extra_that_a_message_names_exists() -> None:
    named = set()
    for path in PACKAGE.rglob("*.py"):
        named |= set(re.findall(r"install_command\(\"([a-z]+)\"\)", path.read_text(encoding="utf-8")))
    assert named and named <= set(metadata.metadata("nanoquant-edge").get_all("Provides-Extra") or [])
