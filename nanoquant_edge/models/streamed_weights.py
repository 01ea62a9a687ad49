# SPDX-License-Identifier: Apache-2.0
"""A model whose blocks stay on disk: structure and small parts in memory, a block's weights read while it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NqEdgeError, first_line
from ..formats.checkpoint import TensorFile
from ..system.extras import install_command

__all__ = ["StoredWeights", "hollow_model"]

_TYPES = ("F32", "F16", "BF16", "F64")


class StoredWeights:
    """The tensors of a model's safetensors files, read one at a time as float32.

    Nothing stays mapped, so that pages of the files do not count as this process's memory.

    Args:
        folder: the model's, for messages.
        files: its weight files; names in them are checked against their index already.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged or a name comes in two of them.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self._home: dict[str, TensorFile] = {}
        for path in files:
            file = TensorFile(path, "NQ-MODEL")
            for name in file.names():
                if name in self._home:
                    raise NqEdgeError("NQ-MODEL", f"{folder} holds {name} in two files.")
                self._home[name] = file

    def float32_bytes(self) -> int:
        """Memory that all tensors take in float32."""
        return sum(4 * int(np.prod(file.shape(name), dtype=np.int64)) for name, file in self._home.items())

    def stored_name(self, name: str) -> str | None:
        """A parameter's name in the files: some models are saved without the first part, `model.`; None if absent."""
        return next((found for found in (name, name.removeprefix("model.")) if found in self._home), None)

    def check(self, parameters: dict[str, tuple[int, ...]]) -> None:
        """Raises NQ-MODEL unless all parameters are there, of these shapes and of a type that can be read."""
        missing = sorted(name for name in parameters if self.stored_name(name) is None)
        if missing:
            raise NqEdgeError("NQ-MODEL", f"{self.folder} lacks {len(missing)} tensors, the first is {missing[0]}.")
        for name, shape in parameters.items():
            stored = self.stored_name(name)
            assert stored is not None
            file = self._home[stored]
            if file.shape(stored) != shape:
                raise NqEdgeError(
                    "NQ-MODEL",
                    f"{self.folder} cannot be loaded: {stored} has shape {file.shape(stored)}, not {shape}.",
                )
            if file.dtype(stored) not in _TYPES:
                raise NqEdgeError(
                    "NQ-MODEL",
                    f"{stored} of {self.folder} has type {file.dtype(stored)}; weights are streamed from F32, F16 "
                    "and BF16.",
                    "Pass --no-stream-weights, or convert the model.",
                )

    def read(self, name: str, device: torch.device) -> Tensor:
        """A parameter as float32 on a device, where it is widened; `check` must have passed.

        Raises:
            NqEdgeError: NQ-MODEL when the file has become shorter since.
        """
        stored = self.stored_name(name)
        assert stored is not None
        file = self._home[stored]
        try:
            mapped = file.tensor(stored)
        except (OSError, ValueError) as error:
            raise NqEdgeError("NQ-MODEL", f"{file.path} cannot be read: {first_line(error)}.") from error
        if file.dtype(stored) == "BF16":  # which NumPy has from another package, and PyTorch does not take from it
            return torch.from_numpy(np.array(mapped.view(np.int16))).view(torch.bfloat16).to(device).float()
        return torch.from_numpy(np.array(mapped)).to(device).float()


def hollow_model(folder: Path) -> Any:
    """The model with its buffers and without its weights, which are on the meta device.

    Args:
        folder: holds config.json; no code from it is run.

    Raises:
        NqEdgeError: NQ-MISSING without accelerate, NQ-MODEL when transformers cannot build it.
    """
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", "streamed weights need the package accelerate.", hint) from error
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # transformers and torch each raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{folder} cannot be loaded: {first_line(error)}.") from error
    return model.eval()
