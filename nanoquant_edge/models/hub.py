# SPDX-License-Identifier: Apache-2.0
"""Models by their id on the Hugging Face hub; HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT are respected.

Nothing but configuration, tokenizer and weights is fetched, and config.json first: what is not supported is refused
before gigabytes come down. Files stay in the hub's own cache.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError, first_line
from ..system.extras import install_command
from ..system.files import path_inside, read_json
from .config_reader import read_config

__all__ = ["fetch", "fetch_config", "looks_like_id"]

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(/(?P<file>[A-Za-z0-9._/-]+\.gguf))?(@(?P<revision>[A-Za-z0-9._/-]+))?")
_SMALL = (
    "config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_PICKLE = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def looks_like_id(name: str) -> bool:
    """Whether a name is of the form `owner/name`, `owner/name/file.gguf`, either with `@revision`."""
    return _ID.fullmatch(name) is not None and ".." not in name


def fetch(name: str, *, allow_pickle: bool = False) -> Path:
    """Bring a model into the hub's cache.

    Args:
        name: an id for which `looks_like_id` holds.
        allow_pickle: fetch pickle files where there are no safetensors.

    Returns:
        Its folder, or its GGUF file.

    Raises:
        NqEdgeError: NQ-HUB when the hub does not have it or cannot be reached; NQ-ARCH or NQ-MODEL when its
            configuration is of an unsupported model, before any weights are fetched.
    """
    match, hub = _parts(name), _client()
    repo, revision = match["repo"], match["revision"]
    try:
        if match["file"]:
            return Path(hub.hf_hub_download(repo, match["file"], revision=revision))
        read_config(read_json(fetch_config(name), "NQ-MODEL"))
        folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*_SMALL, *_SAFE]))
        if allow_pickle and not any(folder.glob("*.safetensors")):
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*_SMALL, *_PICKLE]))
        return folder
    except NqEdgeError:
        raise
    except Exception as error:  # the hub client, its HTTP library and the disk each raise their own kinds
        raise _explained(name, error) from error


def fetch_config(name: str) -> Path:
    """Bring a model's config.json, and nothing else of it, into the hub's cache; returns its path.

    Raises:
        NqEdgeError: NQ-HUB when the hub does not have it or cannot be reached.
    """
    match, hub = _parts(name), _client()
    try:
        config = Path(hub.hf_hub_download(match["repo"], "config.json", revision=match["revision"]))
    except Exception as error:  # the hub client, its HTTP library and the disk each raise their own kinds
        raise _explained(name, error) from error
    return path_inside(config.parent, config.name)


def _parts(name: str) -> re.Match[str]:
    match = _ID.fullmatch(name)
    if match is None:
        raise NqEdgeError("NQ-HUB", f"{name[:200]!r} is not a hub id.")
    return match


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", "huggingface_hub is not installed.", hint) from error
    return huggingface_hub


def _explained(name: str, error: Exception) -> NqEdgeError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return NqEdgeError(
            "NQ-HUB", f"{name} is gated.", "Accept its terms on its page, and log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NqEdgeError("NQ-HUB", f"{name}: there is no such revision.", "Name a branch, tag or commit after the @.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NqEdgeError(
            "NQ-HUB", f"{name} is neither a path here nor a model on the hub.", "Check the spelling, or log in."
        )
    offline = isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError)
    if offline and constants.is_offline_mode():
        return NqEdgeError(
            "NQ-HUB",
            f"{name} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it.",
            "Unset HF_HUB_OFFLINE, or pass a folder.",
        )
    if isinstance(error, errors.EntryNotFoundError) and not offline:
        return NqEdgeError("NQ-HUB", f"{name} lacks a file that is needed: {first_line(error)}.")
    return NqEdgeError("NQ-HUB", f"{name} cannot be fetched: {first_line(error)}.")
