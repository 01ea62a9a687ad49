# SPDX-License-Identifier: Apache-2.0
"""Files that travel with a model: plain files and links inside the folder or into the hub's cache, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import CheckpointParts, write_checkpoint
from nanoquant_edge.formats.companions import COMPANION_FILES, copy_companions
from tests.tiny import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "private").write_text("PRIVATE")
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize("name", COMPANION_FILES)
@pytest.mark.parametrize("target", ["../private", "/etc/hostname", "sub/../../private"])
def test_a_link_to_outside_is_never_copied(folder: Path, name: str, target: str) -> None:
    (folder / "sub").mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(NqEdgeError, match="leads outside") as caught:
        copy_companions(folder, folder.parent / "out")
    assert caught.value.code == "NQ-PATH" and not list((folder.parent / "out").iterdir())


def test_a_folder_that_is_a_link_is_no_way_out(folder: Path) -> None:
    (folder / "sub").symlink_to("..")
    with pytest.raises(NqEdgeError) as caught:
        copy_companions(folder, folder.parent / "out", ["sub/private"])
    assert caught.value.code == "NQ-PATH"


def test_plain_files_links_inside_and_absent_ones(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "other.json").write_text("[]")
    (folder / "tokenizer_config.json").symlink_to("other.json")
    (folder / "special_tokens_map.json").symlink_to("nowhere")
    copy_companions(folder, folder.parent / "out")
    found = {path.name: path.read_text() for path in (folder.parent / "out").iterdir()}
    assert found == {"tokenizer.json": "{}", "tokenizer_config.json": "[]"}
    assert not (folder.parent / "out" / "tokenizer_config.json").is_symlink()


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "ff").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/ff")
    (snapshot / "chat_template.jinja").symlink_to("../../../private")
    (tmp_path / "private").write_text("PRIVATE")
    (tmp_path / "out").mkdir()
    copy_companions(snapshot, tmp_path / "out", ["tokenizer.json"])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(NqEdgeError, match="leads outside"):
        copy_companions(snapshot, tmp_path / "out")


def test_a_checkpoint_takes_no_private_file_along(folder: Path) -> None:
    made = tiny_checkpoint(folder.parent / "c")
    (folder / "chat_template.jinja").symlink_to("../private")
    parts = CheckpointParts(made.config, made.settings, {name: made.layer(name) for name in made.layers}, {})
    with pytest.raises(NqEdgeError) as caught:
        write_checkpoint(folder.parent / "d", parts, companions=folder)
    assert caught.value.code == "NQ-PATH" and not (folder.parent / "d").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells the umask")
@pytest.mark.parametrize(
    ("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)]
)
def test_modes_are_as_the_umask_says(tmp_path: Path, umask: int, file: int, directory: int) -> None:
    before = os.umask(umask)
    try:
        folder = tiny_checkpoint(tmp_path / "c").folder
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {file}
    assert folder.stat().st_mode & 0o777 == directory
