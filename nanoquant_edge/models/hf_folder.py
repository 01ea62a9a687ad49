# SPDX-License-Identifier: Apache-2.0
"""Reading a Hugging Face folder: its weight files are checked against their index before transformers opens them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..formats.checkpoint import TensorFile
from ..formats.companions import copy_companions
from ..formats.lfs_pointer import check_is_no_pointer
from ..formats.tokenizer_file import TOKENIZER_FILE
from ..system.files import path_inside, read_json
from .config_reader import read_config
from .dense_model import build_model, take_generation_settings, transformers_config
from .model_tokenizer import TOKENIZER_PARTS, open_tokenizer
from .source import SourceModel, not_streamed
from .stored_tensors import PickledTensors, SafeTensors, StoredTensors

__all__ = ["check_weight_files", "from_folder"]

_SAFE, _PICKLE = "model.safetensors", "pytorch_model.bin"


@contextlib.contextmanager
def from_folder(
    folder: Path, name: str, *, allow_pickle: bool = False, stream: bool | None = False, limit: int = 0
) -> Iterator[SourceModel]:
    """Load a folder.

    Args:
        folder: holds config.json, weights, and tokenizer.json or vocab.json and merges.txt.
        name: what to call the model.
        allow_pickle: read `pytorch_model.bin` where there are no safetensors; tensors only, no code runs.
        stream: leave the blocks' weights in their files until they are needed; None where they take more than `limit`.
        limit: bytes in float32.

    Raises:
        NqEdgeError: NQ-MODEL, NQ-ARCH, NQ-TOKENIZER or NQ-PATH, see `load_model`.
    """
    if not (folder / "config.json").is_file():
        raise NqEdgeError("NQ-MODEL", f"{folder} has no config.json: it is not a Hugging Face model folder.")
    for part in ("config.json", "generation_config.json", "tokenizer_config.json", *TOKENIZER_PARTS):
        check_is_no_pointer(folder / part, "NQ-MODEL")
    config = read_json(folder / "config.json", "NQ-MODEL")
    read_config(config)  # refuse what is not supported before loading anything large
    if config.get("quantization_config"):
        raise NqEdgeError(
            "NQ-MODEL", f"{folder} is quantized already.", "Compress the original 16- or 32-bit model instead."
        )
    their_config = transformers_config(folder)
    safe = check_weight_files(folder, allow_pickle)
    if stream and not safe:
        raise not_streamed(f"{folder} has pickle files")
    tensors: StoredTensors
    if safe:
        tensors = SafeTensors(folder, _weight_files(folder, _SAFE))
        stream = tensors.float32_bytes() > limit if stream is None else stream
    else:
        tensors = PickledTensors(folder, _weight_files(folder, _PICKLE))
    tokenizers = open_tokenizer(folder)
    model, config, weights = build_model(config, their_config, tensors, name=str(folder), stream=bool(stream))
    take_generation_settings(model, folder)
    if (folder / TOKENIZER_FILE).is_file() and not tokenizers.ours.completed:
        yield SourceModel(name, model, tokenizers, config, folder, "", weights)
        return
    with tempfile.TemporaryDirectory(prefix="nq-edge-") as scratch:
        copy_companions(folder, Path(scratch))
        tokenizers.ours.save_pretrained(scratch)
        yield SourceModel(name, model, tokenizers, config, Path(scratch), "", weights)


def check_weight_files(folder: Path, allow_pickle: bool) -> bool:
    """Find the weight files and compare them with their index, from headers alone.

    Returns:
        True for safetensors, False for pickle.

    Raises:
        NqEdgeError: NQ-MODEL when files are missing, damaged or contradict the index, or when there is only pickle and
            it was not asked for; NQ-PATH when a name leaves the folder.
    """
    for name, safe in ((_SAFE, True), (_PICKLE, False)):
        if (folder / name).is_file():
            listed: dict[str, set[str] | None] = {name: None}
        elif (folder / f"{name}.index.json").is_file():
            listed = _shards(folder / f"{name}.index.json")
        else:
            continue
        if safe:
            _check_safetensors(folder, listed)
        elif not allow_pickle:
            raise NqEdgeError(
                "NQ-MODEL",
                f"{folder} has no safetensors weights, only pickle files.",
                "Convert it to safetensors, or pass --allow-pickle to read the tensors of the pickle files.",
            )
        else:
            _check_pickle(folder, listed)
        return safe
    hint = "Convert the model to safetensors; --allow-pickle reads pytorch_model.bin."
    raise NqEdgeError("NQ-MODEL", f"{folder} has no safetensors weights (model.safetensors or its index).", hint)


def _weight_files(folder: Path, single: str) -> list[Path]:
    """The file of that name, or those that its index names; `check_weight_files` has seen them."""
    if (folder / single).is_file():
        return [folder / single]
    return [_existing(folder, name) for name in _shards(folder / f"{single}.index.json")]


def _shards(index: Path) -> dict[str, set[str] | None]:
    weight_map = read_json(index, "NQ-MODEL").get("weight_map")
    good = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    if not good or not weight_map:
        raise NqEdgeError("NQ-MODEL", f"{index} has no weight_map of tensor names to file names.")
    assert isinstance(weight_map, dict)
    listed: dict[str, set[str] | None] = {}
    for tensor, name in weight_map.items():
        names = listed.setdefault(name, set())
        assert names is not None
        names.add(tensor)
    return dict(sorted(listed.items()))


def _existing(folder: Path, name: str) -> Path:
    path = path_inside(folder, name)
    if not path.is_file():
        raise NqEdgeError("NQ-MODEL", f"{folder} lacks the weight file {name[:200]!r} that its index names.")
    return path


def _check_safetensors(folder: Path, listed: dict[str, set[str] | None]) -> None:
    for name, expected in listed.items():
        found = set(TensorFile(_existing(folder, name), "NQ-MODEL").names())
        odd = sorted(found ^ expected) if expected is not None else []
        if odd:
            raise NqEdgeError("NQ-MODEL", f"the index of {folder} and {name} disagree about tensor {odd[0]!r}.")


def _check_pickle(folder: Path, listed: dict[str, Any]) -> None:
    from .torch_archive import check_torch_archive

    for name in listed:
        check_torch_archive(_existing(folder, name), "NQ-MODEL")
