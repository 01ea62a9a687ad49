# SPDX-License-Identifier: Apache-2.0
"""The manifest: what it records, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import MANIFEST_FILE, Bundle
from nanoquant_edge.formats.kv_layout import KvLayout
from tests.formats.support import graph_bundle


def test_round_trip(tmp_path: Path) -> None:
    bundle = graph_bundle(tmp_path / "b")
    assert sorted(bundle.files) == ["model.onnx", "sub/data"]
    assert bundle.files["model.onnx"].size == 5
    assert Bundle.open(tmp_path / "b", verify=True) == bundle
    assert bundle.kv == KvLayout(2, 2, 16, "float32", 256)


def _refused(folder: Path, message: str, code: str = "NQ-BUNDLE", verify: bool | None = None) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        Bundle.open(folder, verify=verify)
    assert caught.value.code == code


def test_missing_manifest_and_files(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "is not a bundle")
    graph_bundle(tmp_path / "b")
    (tmp_path / "b/sub/data").unlink()
    _refused(tmp_path / "b", "sub/data is missing")


def test_sizes_are_checked_at_every_load(tmp_path: Path) -> None:
    graph_bundle(tmp_path / "b")
    (tmp_path / "b/model.onnx").write_bytes(b"graphs")
    _refused(tmp_path / "b", "has 6 bytes, the manifest says 5", "NQ-HASH", verify=False)


def test_hashes_are_checked_at_the_first_load_and_when_asked(tmp_path: Path) -> None:
    graph_bundle(tmp_path / "b")
    before = (tmp_path / "b/model.onnx").stat()
    with (tmp_path / "b/model.onnx").open("r+b") as file:
        file.write(b"hparg")
    os.utime(tmp_path / "b/model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))
    Bundle.open(tmp_path / "b")  # same place, size and time: trusted
    _refused(tmp_path / "b", "model.onnx has SHA-256", "NQ-HASH", verify=True)
    shutil.copytree(tmp_path / "b", tmp_path / "copy")  # copies the mark too, with the times
    _refused(tmp_path / "copy", "model.onnx has SHA-256", "NQ-HASH")
    Bundle.open(tmp_path / "copy", verify=False)


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    graph_bundle(tmp_path / "b")
    (tmp_path / "b/model.onnx").write_bytes(b"hparg")
    os.utime(tmp_path / "b/model.onnx", ns=(0, 0))
    _refused(tmp_path / "b", "model.onnx has SHA-256", "NQ-HASH")


def test_the_mark_never_writes_through_a_link(tmp_path: Path) -> None:
    graph_bundle(tmp_path / "b")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "b/.nq_verified").unlink()
    (tmp_path / "b/.nq_verified").symlink_to(tmp_path / "victim")
    Bundle.open(tmp_path / "b")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_folder_that_cannot_be_written_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = graph_bundle(tmp_path / "b")
    (tmp_path / "b/.nq_verified").unlink()

    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr("nanoquant_edge.formats.bundle.write_json", refuse)
    assert Bundle.open(tmp_path / "b") == bundle


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    graph_bundle(tmp_path / "b")
    (tmp_path / "outside").write_bytes(b"x")
    (tmp_path / "b/link").symlink_to(tmp_path / "outside")
    manifest = json.loads((tmp_path / "b" / MANIFEST_FILE).read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (tmp_path / "b" / MANIFEST_FILE).write_text(json.dumps(manifest))
    for verify in (None, True, False):
        _refused(tmp_path / "b", "NQ-PATH", "NQ-PATH", verify)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_version": 7}, "has version '7'"),
        ({"backend": 3}, "backend has the impossible value '3'"),
        ({"kv": {"layers": 1}}, r"kv\.dtype is missing"),
        (
            {"kv": {"layers": 0, "heads": 1, "head_dim": 1, "dtype": "x", "max_capacity": 1}},
            r"kv\.layers has the impossible",
        ),
        (
            {"kv": {"layers": 1, "heads": 1, "head_dim": 1, "dtype": "x", "max_capacity": 1}},
            r"kv\.dtype has the impossible",
        ),
        ({"files": {"a": 3}}, r"files\.a has the impossible value"),
        ({"files": {"a": {"size": "5", "sha256": "0" * 64}}}, r"files\.a\.size has the impossible value"),
        ({"files": {"a": {"size": 5, "sha256": "x"}}}, r"files\.a\.sha256 has the impossible value"),
        ({"backend_versions": ["1"]}, "backend_versions has the impossible value"),
        ({"backend_versions": ["9" * 5000, ""]}, "backend_versions has the impossible value"),
        ({"backend_versions": ["²", ""]}, "backend_versions has the impossible value"),
        ({"true_bpw": float("nan")}, "true_bpw has the impossible value"),
        ({"true_bpw": 10**400}, "true_bpw has the impossible value"),
        ({"source_model": {"eos_token_id": [10**400]}}, r"source_model\.eos_token_id has the impossible value"),
        ({"measured": {"a": "\ud800"}}, r"measured\.a has the impossible value"),
        ({"vocab_size": True}, "vocab_size has the impossible value"),
        ({"vocab_size": (1 << 31) - 1}, "vocab_size has the impossible value"),
    ],
)
def test_bad_manifests(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    graph_bundle(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST_FILE).read_text())
    (tmp_path / "b" / MANIFEST_FILE).write_text(json.dumps({**manifest, **change}))
    _refused(tmp_path / "b", message)


def test_a_bundle_in_the_hubs_cache_opens(tmp_path: Path) -> None:
    """Files of a snapshot are links to blobs, also those in folders; a link to anywhere else is still refused."""
    made = graph_bundle(tmp_path / "b")
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for index, path in enumerate(sorted(path for path in (tmp_path / "b").rglob("*") if path.is_file())):
        if path.name.startswith("."):
            continue
        name = path.relative_to(tmp_path / "b")
        (cache / "blobs" / str(index)).write_bytes(path.read_bytes())
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(Path(*[".."] * (len(name.parts) + 1)) / "blobs" / str(index))
    opened = Bundle.open(snapshot, verify=True)
    assert opened.files == made.files
    name = next(iter(opened.files))
    assert opened.path(name).parent == (cache / "blobs").resolve()
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(tmp_path / "b" / name)
    _refused(snapshot, "leads outside", "NQ-PATH")


def test_only_listed_files_are_given_out(tmp_path: Path) -> None:
    bundle = graph_bundle(tmp_path / "b")
    (tmp_path / "b" / "more").write_text("x")
    with pytest.raises(NqEdgeError, match="does not list it") as caught:
        bundle.path("more")
    assert caught.value.code == "NQ-BUNDLE"
