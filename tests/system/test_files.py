# SPDX-License-Identifier: Apache-2.0
"""Paths that stay inside, JSON that is bounded, folders that are whole or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system import files
from nanoquant_edge.system.files import new_folder, path_inside, read_json, sha256_of, write_json
from nanoquant_edge.system.written import MARKER, sealed


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_path_inside_accepts_what_stays(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert path_inside(tmp_path, "a.txt") == tmp_path.resolve() / "a.txt"
    assert path_inside(tmp_path, "sub/b") == tmp_path.resolve() / "sub/b"


LEAVING = ["", ".", "..", "../x", "/etc/passwd", "a\0b", "out/x", "out", "loop", "x" * 300, "\ud800"]
#: These stay inside, but what is checked would not be what is used once they are joined to another folder.
AMBIGUOUS = ["sub/../a.txt", "sub/../..", "deep/../../a.txt", "link/a", "link/deep/a", "sub\\..\\a", "a\nb"]


@pytest.mark.parametrize("name", [*LEAVING, *AMBIGUOUS])
def test_path_inside_refuses_what_leaves(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to("sub")
    (folder / "deep").symlink_to("sub/deep")
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    try:
        target = path_inside(folder, name)
    except NqEdgeError as error:
        assert error.code == "NQ-PATH"
    else:  # newer Pythons resolve a loop of links to itself; it stays inside and does not exist
        assert name == "loop"
        assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
    ],
)
def test_read_json_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(NqEdgeError, match=message) as caught:
        read_json(tmp_path / "x.json", "NQ-MODEL")
    assert caught.value.code == "NQ-MODEL"


def test_read_json_checks_the_size_first(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(files.MAX_JSON_BYTES + 1)  # sparse
    with pytest.raises(NqEdgeError, match="more than any real file"):
        read_json(tmp_path / "big.json", "NQ-CKPT")
    with pytest.raises(NqEdgeError, match="cannot read"):
        read_json(tmp_path / "absent.json", "NQ-CKPT")
    with pytest.raises(NqEdgeError, match="cannot read"):
        read_json(tmp_path, "NQ-CKPT")


def test_write_json_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    monkeypatch.setattr(Path, "replace", _fail)
    with pytest.raises(OSError, match="disk"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_write_json_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "x.json").symlink_to("victim")
    write_json(tmp_path / "x.json", {})
    assert (tmp_path / "victim").read_text() == "mine"


def _fail(*_arguments: object) -> None:
    raise OSError(errno.EIO, "disk trouble")


def _ours(folder: Path) -> Path:
    with new_folder(folder) as scratch:
        (scratch / "nq_bundle.json").write_text("{}")
    return folder


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep/out") as scratch:
        (scratch / "a").write_text("1")
        assert not (tmp_path / "deep/out").exists()
    assert (tmp_path / "deep/out/a").read_text() == "1"
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["out"]


def test_new_folder_vanishes_on_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as scratch:
        (scratch / "a").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_overwriting(tmp_path: Path) -> None:
    _ours(tmp_path / "out")
    with pytest.raises(NqEdgeError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    with new_folder(tmp_path / "out", overwrite=True) as scratch:
        (scratch / "new").write_text("1")
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [MARKER, "new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def _gptq(folder: Path) -> None:
    write_json(folder / "config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}})


def _a_manifest_of_ours(folder: Path) -> None:
    write_json(folder / "nq_bundle.json", {"bundle_version": 1})


def _a_marker_by_hand(folder: Path) -> None:
    write_json(folder / MARKER, {"written_by": "nanoquant-edge", "files": ["letter.txt"], "sha256": "0" * 64})
    (folder / "letter.txt").write_text("dear")


def _a_marker_that_is_no_list(folder: Path) -> None:
    write_json(folder / MARKER, sealed({"written_by": "nanoquant-edge", "files": None}))


@pytest.mark.parametrize(
    "make",
    [
        _gptq,
        lambda folder: write_json(folder / "config.json", {"quantization_config": None}),
        lambda folder: write_json(folder / "config.json", {"model_type": "llama"}),
        lambda folder: (folder / "sub").mkdir(),
        lambda folder: (folder / MARKER).write_text("{"),
        _a_manifest_of_ours,
        _a_marker_by_hand,
        _a_marker_that_is_no_list,
    ],
)
def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    make(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(NqEdgeError, match="was not written by nq-edge") as caught, new_folder(folder, overwrite=True):
        pass
    assert caught.value.code == "NQ-OUTPUT"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["letter.txt", "deep/letter.txt", "deep/engine"])
def test_a_folder_of_ours_with_something_else_inside_is_not_replaced(tmp_path: Path, name: str) -> None:
    folder = _ours(tmp_path / "out")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("dear")
    with (
        pytest.raises(NqEdgeError, match=f"holds {name}, which was not written by nq-edge"),
        new_folder(folder, overwrite=True),
    ):
        pass
    assert (folder / name).read_text() == "dear"


def test_a_link_in_a_folder_of_ours_is_somebody_else_s(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "out")
    (tmp_path / "letters").mkdir()
    (folder / "letters").symlink_to(tmp_path / "letters")
    with pytest.raises(NqEdgeError, match="holds letters"), new_folder(folder, overwrite=True):
        pass


def test_what_our_own_programs_add_does_not_hinder(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "out")
    for name in (".nq_verified", "reference.safetensors", ".venv/bin/python", "local/lib.so", "engine/engine"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours")
    with new_folder(folder, overwrite=True):
        pass
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_an_empty_folder_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", overwrite=True):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(NqEdgeError, match="is no folder"), new_folder(tmp_path / "file", overwrite=True):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_crash_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    _ours(tmp_path / "out")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "out/nq_bundle.json").is_file()


def test_scratch_folders_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    left = tmp_path / ".out.nq-edge-abcdefgh"
    left.mkdir()
    (left / "half").write_text("x")
    for name in (".out.settings", ".out.nq-edge-mine", ".other.nq-edge-abcdefgh"):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out"):
        assert not left.exists()
        with pytest.raises(RuntimeError), new_folder(tmp_path / "out"):  # a second run beside the first
            assert len(list(tmp_path.glob(".out.nq-edge-????????"))) == 2
            raise RuntimeError
    kept = [".other.nq-edge-abcdefgh", ".out.nq-edge-mine", ".out.settings", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    _ours(tmp_path / "target")
    (tmp_path / "out").symlink_to("target")
    with new_folder(tmp_path / "out", overwrite=True) as scratch:
        (scratch / "new").write_text("1")
    assert (tmp_path / "out/new").is_file()
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "target/nq_bundle.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot swap two names."""
    monkeypatch.setattr(files, "exchange", lambda *_names: False)


@pytest.mark.usefixtures("no_exchange")
def test_overwriting_without_the_swap(tmp_path: Path) -> None:
    test_overwriting(tmp_path)


@pytest.mark.usefixtures("no_exchange")
def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ours(tmp_path / "out")
    rename, calls = Path.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            _fail()
        rename(source, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(NqEdgeError, match="disk trouble"), new_folder(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out/nq_bundle.json").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="No space left") as caught, new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code == "NQ-OUTPUT"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_found_in_what_a_library_says(tmp_path: Path, wrapped: bool) -> None:
    # safetensors' words, and an exception that hides the disk's
    with pytest.raises(NqEdgeError, match="File too large") as caught, new_folder(tmp_path / "out"):
        if wrapped:
            try:
                raise OSError(errno.EFBIG, "File too large")
            except OSError as error:
                raise ValueError("odd") from error
        raise RuntimeError("Error while serializing: I/O error: File too large (os error 27)")
    assert caught.value.code == "NQ-OUTPUT"
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NqEdgeError, match="cannot write"), new_folder(tmp_path / "file/out"):
        pass
