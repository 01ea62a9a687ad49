# SPDX-License-Identifier: Apache-2.0
"""Copies of tiny bundles with changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanoquant_edge.formats.bundle import Bundle


@pytest.fixture
def edit_bundle(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a bundle with changed manifest fields or files, the recorded hashes made to fit."""

    def edit(source: Path, *, files: dict[str, bytes | None] | None = None, **fields: object) -> Path:
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, copy)
        for name, content in (files or {}).items():
            if content is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(content)
        manifest = copy / "nq_bundle.json"
        entry = json.loads(manifest.read_text())
        entry.update(fields)
        entry["files"] = {k: v for k, v in entry["files"].items() if (copy / k).is_file()}
        manifest.write_text(json.dumps(entry))
        if files:
            shutil.copy(manifest, copy / ".old")
            _record(copy)
        return copy

    return edit


def _record(folder: Path) -> None:
    from nanoquant_edge.system.files import sha256_of

    manifest = folder / "nq_bundle.json"
    entry = json.loads(manifest.read_text())
    for path in folder.iterdir():
        if not path.name.startswith(".") and path.name != manifest.name:
            entry["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest.write_text(json.dumps(entry))
    Bundle.open(folder, verify=True)
