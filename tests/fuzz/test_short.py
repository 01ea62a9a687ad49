# SPDX-License-Identifier: Apache-2.0
"""The short version of the campaign: what was found before, and some new cases of every reader."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import Yard
from tests.fuzz.targets import TARGETS, Target, make_targets

pytest.importorskip("onnxruntime")

FOUND = Path(__file__).parents[1] / "data/fuzz"
#: Files of the corpus, each a script of edits that once broke its reader.
CORPUS = sorted(FOUND.glob("*/*"))
#: A script of structural edits; raw bytes seldom get past the first check, and get their turn too.
SCRIPTS = st.one_of(
    st.binary(min_size=4, max_size=40).map(lambda rest: b"\xc8" + rest),
    st.binary(min_size=4, max_size=40).map(lambda rest: b"\x40" + rest),
    st.binary(max_size=80),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return make_targets(Yard(tmp_path_factory.mktemp("fuzz") / "yard"))


def test_the_list_of_targets_is_whole(targets: dict[str, Target]) -> None:
    assert set(TARGETS) - {"torch-archive", "gguf-model"} <= set(targets) <= set(TARGETS)
    assert {path.parent.name for path in CORPUS} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_an_honest_file_is_read(targets: dict[str, Target], name: str) -> None:
    if name not in targets:
        pytest.skip("needs PyTorch or gguf")
    assert not targets[name].attack(b"\x40")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(targets: dict[str, Target], path: Path) -> None:
    if path.parent.name not in targets:
        pytest.skip("needs PyTorch or gguf")
    start = time.process_time()
    targets[path.parent.name].attack(path.read_bytes())
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(targets: dict[str, Target], name: str) -> None:
    if name not in targets:
        pytest.skip("needs PyTorch or gguf")

    @settings(database=None, suppress_health_check=list(HealthCheck))
    @given(SCRIPTS)
    def attack(script: bytes) -> None:
        targets[name].attack(script)

    attack()
