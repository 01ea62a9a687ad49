# SPDX-License-Identifier: Apache-2.0
"""Tensors of a dense model as its files hold them: looked up by name, read one at a time, always as float32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import NqEdgeError, first_line
from ..formats.safetensors_file import TensorFile
from .torch_archive import load_tensors

__all__ = ["PickledTensors", "SafeTensors", "StoredTensors"]

_FLOATS = ("F64", "F32", "F16", "BF16")
#: Types of PyTorch whose names differ from safetensors'.
_SPELLED = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class StoredTensors(Protocol):
    """What every kind of weight file answers."""

    def names(self) -> Collection[str]:
        """Names of all tensors; looking one up is quick."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def check(self, name: str) -> None:
        """Raises NQ-MODEL for a tensor that holds something other than plain numbers of 16, 32 or 64 bits."""

    def read(self, name: str, device: torch.device) -> Tensor:
        """A tensor as float32 on a device, a copy; `check` must have passed."""


class SafeTensors:
    """The tensors of safetensors files.

    Nothing stays mapped, so that pages of the files do not count as this process's memory.

    Args:
        folder: the model's, for messages.
        files: its weight files; names in them are checked against their index already.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged or a name comes in two of them.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        self._file_of: dict[str, TensorFile] = {}
        for path in files:
            file = TensorFile(path, "NQ-MODEL")
            for name in file.names():
                if name in self._file_of:
                    raise NqEdgeError("NQ-MODEL", f"{folder} holds {name} in two files.")
                self._file_of[name] = file

    def names(self) -> Collection[str]:
        """Names of all tensors, in the order of the files."""
        return self._file_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        return self._file_of[name].shape(name)

    def check(self, name: str) -> None:
        """Raises NQ-MODEL for a tensor that is not of a type F16, BF16, F32 or F64, or is empty."""
        file = self._file_of[name]
        if file.dtype(name) not in _FLOATS or 0 in file.shape(name):
            raise _quantized(self._folder, name, file.dtype(name))

    def float32_bytes(self) -> int:
        """Memory that all tensors take in float32."""
        return sum(4 * int(np.prod(file.shape(name), dtype=np.int64)) for name, file in self._file_of.items())

    def read(self, name: str, device: torch.device) -> Tensor:
        """A tensor as float32 on a device, where it is widened.

        Raises:
            NqEdgeError: NQ-MODEL when the file has become shorter since.
        """
        file = self._file_of[name]
        try:
            mapped = file.tensor(name)
        except (OSError, ValueError) as error:
            raise NqEdgeError("NQ-MODEL", f"{file.path} cannot be read: {first_line(error)}.") from error
        if file.dtype(name) == "BF16":  # which NumPy has from another package, and PyTorch does not take from it
            return torch.from_numpy(np.array(mapped.view(np.int16))).view(torch.bfloat16).to(device).float()
        return torch.from_numpy(np.array(mapped)).to(device).float()


class PickledTensors:
    """The tensors of `torch.save` files, read as tensors only: no code in them runs.

    Args:
        folder: the model's, for messages.
        files: its weight files.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged, holds something else, or a name comes in two of them.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            for name, tensor in load_tensors(path, "NQ-MODEL").items():
                if name in self._tensors:
                    raise NqEdgeError("NQ-MODEL", f"{folder} holds {name} in two files.")
                self._tensors[name] = tensor

    def names(self) -> Collection[str]:
        """Names of all tensors, in the order of the files."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def check(self, name: str) -> None:
        """Raises NQ-MODEL for a tensor that is not of a type float16, bfloat16, float32 or float64, or is empty."""
        tensor = self._tensors[name]
        if tensor.dtype not in _SPELLED or not tensor.numel():
            raise _quantized(self._folder, name, str(tensor.dtype).removeprefix("torch."))

    def read(self, name: str, device: torch.device) -> Tensor:
        """A tensor as float32 on a device, a copy."""
        return self._tensors[name].to(device, torch.float32, copy=True)


def _quantized(folder: Path, name: str, dtype: str) -> NqEdgeError:
    return NqEdgeError(
        "NQ-MODEL",
        f"{name} of {folder} has type {dtype}: its weights are quantized, though config.json does not say so.",
        "Compress the original 16- or 32-bit model instead.",
    )
