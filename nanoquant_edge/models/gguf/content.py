# SPDX-License-Identifier: Apache-2.0
"""A GGUF file, opened: its header has been held against the file's size before the `gguf` package reads it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NqEdgeError, first_line
from ...formats.gguf_header import GgufHeader, read_gguf_header
from ...system.extras import install_command
from ..families import family_of

__all__ = ["MODEL_TYPES", "GgufContent"]

#: `general.architecture` -> config.json's `model_type`, for the architectures that are read from GGUF.
MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}


class GgufContent:
    """Fields and tensors of a GGUF file.

    Args:
        path: the file.
        has_package: tells whether a package is installed.

    Attributes:
        path: the file.
        architecture: what `general.architecture` says.
        tensors: name -> shape (fastest dimension last), ggml's number of the block type, first byte.

    Raises:
        NqEdgeError: NQ-MODEL when it is no GGUF file, damaged, one of several parts, a compressed model already, or of
            a block type that cannot be dequantised; NQ-ARCH for an architecture that is not read; NQ-MISSING without
            gguf.
    """

    def __init__(self, path: Path, has_package: Callable[[str], object] = importlib.util.find_spec) -> None:
        header = read_gguf_header(path)
        if not has_package("gguf"):
            hint = f"Install it: {install_command('compress')}."
            raise NqEdgeError("NQ-MISSING", "reading GGUF needs the package gguf.", hint)
        self.architecture = _architecture(path, header.fields)
        kind = header.fields.get("general.type", "model")
        if kind != "model":
            raise NqEdgeError("NQ-MODEL", f"{path} holds no model but what it calls {str(kind)[:80]!r}.")
        parts = header.fields.get("split.count", 0)
        if parts not in (0, 1):
            hint = "Join the parts with llama.cpp's llama-gguf-split --merge."
            raise NqEdgeError("NQ-MODEL", f"{path} is one of {parts} parts of a model.", hint)
        if any(name.endswith(".nq_v") for name in header.tensors):
            hint = "Import it: nq-edge import FILE --base MODEL --output CHECKPOINT."
            raise NqEdgeError("NQ-MODEL", f"{path} holds a NanoQuant model already.", hint)
        for name in header.tensors:
            _check_block_type(path, header, name)
        import gguf

        self.path, self.tensors = path, header.tensors
        self._scalars, self._arrays = header.fields, header.arrays
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # gguf and numpy raise their own kinds
            raise NqEdgeError("NQ-MODEL", f"{path} cannot be read: {first_line(error)}.") from error
        self._data = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def keys(self) -> list[str]:
        """Names of all fields."""
        return [*self._scalars, *self._arrays]

    def get(self, key: str) -> Any:
        """A field: a number, a truth value, a text, or a list of them; None where the file does not have it.

        Raises:
            NqEdgeError: NQ-MODEL when it is text that is not UTF-8.
        """
        if key in self._scalars:
            value = self._scalars[key]
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise NqEdgeError("NQ-MODEL", f"{self.path}: the field {key} is not UTF-8.") from error
            return value
        if key not in self._arrays:
            return None
        try:
            return list(self._reader.fields[key].contents())
        except (UnicodeDecodeError, KeyError, ValueError) as error:
            raise NqEdgeError(
                "NQ-MODEL", f"{self.path}: the field {key} cannot be read ({first_line(error)})."
            ) from error

    def values(self, name: str) -> np.ndarray:
        """A tensor as float32, dequantised; its block type must be one that can be."""
        from gguf import dequantize

        tensor = self._data[name]
        found: np.ndarray = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        return found.reshape(self.tensors[name].shape)


def _architecture(path: Path, fields: dict[str, Any]) -> str:
    found = fields.get("general.architecture")
    if not isinstance(found, str):
        raise NqEdgeError("NQ-MODEL", f"{path} is damaged: it names no architecture.")
    if found not in MODEL_TYPES:
        family_of({"model_type": found})  # which says what is not supported at all
        message = f"architecture {found!r} is not read from GGUF."
        raise NqEdgeError("NQ-ARCH", message, "Use the Hugging Face folder.")
    return found


def _check_block_type(path: Path, header: GgufHeader, name: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    tensor = header.tensors[name]
    try:
        kind = GGMLQuantizationType(tensor.kind)
    except ValueError:
        kind = None
    if kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, *_type_traits):
        spelled = kind.name if kind is not None else f"number {tensor.kind}"
        raise NqEdgeError(
            "NQ-MODEL",
            f"{path} stores {name[:200]!r} in the block type {spelled}, which cannot be read.",
            "Use a file in F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K, or the Hugging Face folder.",
        )
    block, size = GGML_QUANT_SIZES[kind]
    count = math.prod(tensor.shape)
    if not tensor.shape or tensor.shape[-1] % block or tensor.start + count // block * size > header.size:
        raise NqEdgeError("NQ-MODEL", f"{path} is damaged: the data of {name[:200]!r} passes the end of the file.")
