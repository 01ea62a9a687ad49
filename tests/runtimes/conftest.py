# SPDX-License-Identifier: Apache-2.0
"""Copies of tiny bundles with changes, and tokenizers of the two common kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from nanoquant_edge.formats.bundle import Bundle
from tests.tiny import TEXT, write_tokenizer


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


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_level")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def byte_fallback_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the Llama-2 kind: spaces as U+2581, unknown characters as bytes, BOS by the post-processor."""
    folder = tmp_path_factory.mktemp("byte_fallback")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({c for c in TEXT if c.isascii() and c not in " \n"} | {"\u2581", "ö"})
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *letters, "\u2581t", "\u2581th", "he"])}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("h", "e")]
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    return folder
