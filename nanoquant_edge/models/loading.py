# SPDX-License-Identifier: Apache-2.0
"""A model that a user names (a folder, a GGUF file or a hub id) as a PyTorch model with its tokenizer files on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import NqEdgeError
from ..system.extras import install_command
from .hub import fetch, looks_like_id
from .source import SourceModel, not_streamed

__all__ = ["SourceModel", "load_model", "locate"]

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

    Example:
        with load_model("HuggingFaceTB/SmolLM2-135M") as source:
            print(source.family.name, source.decoder.num_layers, source.tokenizer.encode("The fox"))
    """
    try:
        import transformers
    except ImportError as error:
        raise NqEdgeError("NQ-MISSING", "transformers is not installed.", _INSTALL) from error
    from .gguf_file import from_gguf
    from .hf_folder import from_folder

    transformers.utils.logging.disable_progress_bar()
    found, name = locate(path, allow_pickle=allow_pickle)
    if stream and not found.is_dir():
        raise not_streamed(f"{found} is a single file")
    if found.is_dir():
        opened = from_folder(found, name, allow_pickle=allow_pickle, stream=stream, limit=limit)
    else:
        opened = from_gguf(found, name)
    with opened as source:
        yield source


def locate(path: str | Path, *, allow_pickle: bool = False, download: Callable[..., Path] = fetch) -> tuple[Path, str]:
    """Where a model lies and what to call it; one of the hub is fetched first.

    Args:
        path: a folder, a .gguf file or a hub id. A path that exists is never taken for an id.
        allow_pickle: fetch pickle files where there are no safetensors.
        download: brings a hub id into the cache, see `hub.fetch`.

    Raises:
        NqEdgeError: NQ-MODEL when there is no such path and it is no id, NQ-HUB when the hub does not give it.
    """
    name, path = str(path), Path(path)
    if path.exists():
        return path, path.stem if path.is_file() else path.resolve().name
    if looks_like_id(name):
        return download(name, allow_pickle=allow_pickle), name
    hint = "Pass a Hugging Face folder, a .gguf file or a hub id (owner/name)."
    raise NqEdgeError("NQ-MODEL", f"{path} does not exist.", hint)
