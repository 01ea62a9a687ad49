# SPDX-License-Identifier: Apache-2.0
"""A model that a user names (a folder, a GGUF file or a hub id) as a PyTorch model with its tokenizer files on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import NqEdgeError
from ..system.extras import install_command
from .source import SourceModel, not_streamed

__all__ = ["SourceModel", "load_model"]

_INSTALL = f"Install it: {install_command('compress')}."


@contextlib.contextmanager
def load_model(
    path: str | Path, *, allow_pickle: bool = False, stream: bool | None = False, limit: int = 0
) -> Iterator[SourceModel]:
    """Load a model for compression. Holds the whole model in float32, or without its blocks where they are streamed.

    Args:
        path: a Hugging Face folder (config.json, safetensors, tokenizer.json), a .gguf file, or a hub id
            (`owner/name`, `owner/name@revision`, `owner/name/file.gguf`). A path that exists is never taken for an id.
        allow_pickle: where there are no safetensors, read `pytorch_model.bin`, tensors only, running no code.
        stream: leave the weights of the blocks in their safetensors files, see `SourceModel.opened`; None does so where
            the model takes more than `limit` and lies in safetensors.
        limit: bytes in float32.

    Raises:
        NqEdgeError: NQ-MODEL for a missing, truncated or foreign file, NQ-ARCH for an unknown architecture,
            NQ-TOKENIZER when the tokenizer is missing, NQ-HUB when the hub does not give it, NQ-MISSING without
            transformers, NQ-OPTION when weights are to be streamed from something other than safetensors.
    """
    try:
        import transformers
    except ImportError as error:
        raise NqEdgeError("NQ-MISSING", "transformers is not installed.", _INSTALL) from error
    from .gguf_file import from_gguf
    from .hf_folder import from_folder
    from .hub import fetch, looks_like_id

    transformers.utils.logging.disable_progress_bar()
    name, path = str(path), Path(path)
    if not path.exists() and looks_like_id(name):
        path = fetch(name, allow_pickle=allow_pickle)
    elif not path.exists():
        raise NqEdgeError(
            "NQ-MODEL", f"{path} does not exist.", "Pass a Hugging Face folder, a .gguf file or a hub id (owner/name)."
        )
    else:
        name = path.stem if path.is_file() else path.resolve().name
    if stream and not path.is_dir():
        raise not_streamed(f"{path} is a single file")
    opened = from_folder(path, name, allow_pickle, stream, limit) if path.is_dir() else from_gguf(path, name)
    with opened as source:
        yield source
