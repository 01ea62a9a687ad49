# SPDX-License-Identifier: Apache-2.0
"""How a model's author means it to be sampled: the values of generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..system.files import path_inside, read_json
from .sampling import SamplingConfig

__all__ = ["PLAIN_SAMPLING", "adjusted", "read_sampling", "sampling_of"]

GENERATION_FILE = "generation_config.json"
#: For models whose author says nothing: warm enough that a small model does not repeat itself.
PLAIN_SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_of(settings: Mapping[str, Any]) -> SamplingConfig:
    """The sampling of a generation_config.json; `PLAIN_SAMPLING` where it names neither way nor value.

    Example:
        >>> sampling_of({"do_sample": True, "temperature": 0.6, "top_k": 20}).top_k
        20
        >>> sampling_of({"do_sample": False}).greedy
        True
    """
    given = {name: settings[name] for name in _NAMES if settings.get(name) is not None}
    if settings.get("do_sample") is False:
        return SamplingConfig()
    if not given:
        return PLAIN_SAMPLING
    given.setdefault("temperature", 1.0)
    try:
        return SamplingConfig(**given)
    except NqEdgeError as error:
        raise NqEdgeError("NQ-BUNDLE", f"{GENERATION_FILE}: {error.message}") from error


def read_sampling(folder: str | Path) -> SamplingConfig:
    """The sampling that a bundle's generation_config.json asks for.

    Raises:
        NqEdgeError: NQ-BUNDLE when the file cannot be read, or a value is out of its range.
    """
    path = path_inside(Path(folder), GENERATION_FILE)
    settings = read_json(path, "NQ-BUNDLE") if path.is_file() else {}
    return sampling_of(settings)


def adjusted(default: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """The model's sampling with what a user asked for instead.

    Temperature 0 asks for the most likely token, so our own choice for models that say nothing has no say then; what a
    model's author chose beside the temperature stays.

    Example:
        >>> adjusted(PLAIN_SAMPLING, {"temperature": 0.0}) == SamplingConfig()
        True
        >>> adjusted(SamplingConfig(temperature=0.6, top_k=20), {"temperature": 0.9}).top_k
        20

    Raises:
        NqEdgeError: NQ-OPTION for a value out of its range.
    """
    base = SamplingConfig() if default == PLAIN_SAMPLING and changes.get("temperature") == 0 else default
    return replace(base, **changes)
