# SPDX-License-Identifier: Apache-2.0
"""A pointer of Git LFS is called what it is, whichever file it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.gguf_header import read_gguf_header
from nanoquant_edge.formats.lfs_pointer import is_pointer
from nanoquant_edge.formats.safetensors_file import TensorFile
from nanoquant_edge.formats.tokenizer_file import read_tokenizer_file

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


@pytest.mark.parametrize("content", ["", "version 1", POINTER[1:], POINTER + "x" * 1024, "{}"])
def test_other_files_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "x").write_text(content)
    assert not is_pointer(tmp_path / "x")
    assert not is_pointer(tmp_path / "absent")


@pytest.mark.parametrize("read", [TensorFile, read_gguf_header, read_tokenizer_file])
def test_readers_say_so(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "x").write_text(POINTER)
    with pytest.raises(NqEdgeError, match="is a pointer of Git LFS") as caught:
        read(tmp_path / "x")
    assert "git lfs pull" in caught.value.hint
