# SPDX-License-Identifier: Apache-2.0
"""Opening a NanoQuant checkpoint folder (docs/FORMAT.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...system.files import path_inside, read_json
from ..entry import LARGEST, Entry
from ..safetensors_file import TensorFile
from ..stored_tensor import StoredTensor
from .layer import PackedLayer
from .naming import model_name
from .packing import words_for
from .settings import QuantizationSettings
from .table import TABLE_FORMATS, QuantizedTable

__all__ = ["INDEX_FILE", "WEIGHTS_FILE", "Checkpoint"]

# Not `model.safetensors`: stock transformers would take that file, find no dense weights for the compressed layers,
# log it, and run with random ones. With this name it stops ("no file named model.safetensors").
WEIGHTS_FILE = "nanoquant.safetensors"
INDEX_FILE = "nanoquant.safetensors.index.json"

#: config.json's name of a scale type -> safetensors' name
_SPELLING = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}

#: Ranks of a thousand layers take some hundred kilobytes.
_MOST_CONFIG_BYTES = 64 << 20
_PARTS = ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias")


class Checkpoint:
    """A checkpoint folder, opened and checked; tensors are mapped from disk when asked for.

    Args:
        folder: holds config.json and `nanoquant.safetensors` (or shards and their index).

    Raises:
        NqEdgeError: NQ-CKPT when a file is missing or truncated, or when a layer's tensors contradict each other or
            the configuration. Only headers are read for that.

    Example:
        >>> checkpoint = Checkpoint("checkpoint")
        >>> layer = checkpoint.layer(checkpoint.layers[0])
        >>> layer.rank == checkpoint.settings.ranks[checkpoint.layers[0]]
        True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NqEdgeError(
                "NQ-CKPT", f"{self.folder} is not a folder.", "Pass the folder that `nq-edge compress` wrote."
            )
        content = read_json(self.folder / "config.json", "NQ-CKPT", _MOST_CONFIG_BYTES)
        self.config: dict[str, Any] = Entry(content, owner="config.json's", code="NQ-CKPT").whole()
        self.settings = QuantizationSettings.from_dict(self.config.get("quantization_config"))
        self._home: dict[str, TensorFile] = {}
        for name, listed in self._weight_files().items():
            file = TensorFile(path_inside(self.folder, name))
            if listed is not None and listed != set(file.names()):
                odd = sorted(listed ^ set(file.names()))[0]
                raise NqEdgeError("NQ-CKPT", f"{INDEX_FILE} and {name} disagree about tensor {odd}.")
            self._home.update(dict.fromkeys(file.names(), file))
        for layer in self.settings.ranks:
            self._check_layer(layer)
        for module in self.settings.tables:
            self._check_table(module)

    def _weight_files(self) -> dict[str, set[str] | None]:
        """File name -> the tensors that the index expects in it; None without an index."""
        if self.settings.shards == 1:
            if not (self.folder / WEIGHTS_FILE).is_file():
                raise NqEdgeError("NQ-CKPT", f"{self.folder} has no {WEIGHTS_FILE}.")
            return {WEIGHTS_FILE: None}
        index = self.folder / INDEX_FILE
        if not index.is_file():
            raise NqEdgeError("NQ-CKPT", f"{self.folder} has no {INDEX_FILE}.")
        weight_map = read_json(index, "NQ-CKPT", _MOST_CONFIG_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise NqEdgeError("NQ-CKPT", f"{index} has no weight_map.")
        names = sorted(set(weight_map.values()))
        return {name: {tensor for tensor, home in weight_map.items() if home == name} for name in names}

    def _check_layer(self, layer: str) -> None:
        rank = self.settings.ranks[layer]
        shapes = {}
        for part in _PARTS:
            file = self._home.get(f"{layer}.{part}")
            if file is not None:
                shapes[part] = file.shape(f"{layer}.{part}")
        missing = [part for part in _PARTS[:4] if part not in shapes]
        if missing:
            raise NqEdgeError("NQ-CKPT", f"layer {layer} has no {missing[0]}.")
        if any(len(shapes[part]) != 1 for part in shapes if not part.endswith("packed")):
            raise NqEdgeError("NQ-CKPT", f"layer {layer} has a scale or bias that is not a vector.")
        m, n = shapes["scale_out"][0], shapes["scale_in"][0]
        if not 0 < m < LARGEST or not 0 < n < LARGEST:
            raise NqEdgeError("NQ-CKPT", f"layer {layer} has {m} rows and {n} columns.")
        expected = {
            "u_packed": (m, words_for(rank)),
            "v_packed": (rank, words_for(n)),
            "scale_mid": (rank,),
            "bias": (m,),
        }
        for part, shape in expected.items():
            if shapes.get(part, shape) != shape:
                raise NqEdgeError("NQ-CKPT", f"{layer}.{part} has shape {shapes[part]}, not {shape}.")
        for part in ("u_packed", "v_packed"):
            name = f"{layer}.{part}"
            if self._home[name].dtype(name) != "I32":
                raise NqEdgeError("NQ-CKPT", f"{name} is {self._home[name].dtype(name)}, not int32 words.")
        stated = _SPELLING[self.settings.scale_dtype]
        for part in shapes:
            found = self._home[f"{layer}.{part}"].dtype(f"{layer}.{part}")
            allowed = {stated} if part.startswith("scale") else set(_SPELLING.values())
            if not part.endswith("packed") and found not in allowed:
                raise NqEdgeError("NQ-CKPT", f"{layer}.{part} is {found}, not {' or '.join(sorted(allowed))}.")

    def _check_table(self, module: str) -> None:
        codes, scales = f"{module}.codes", f"{module}.scales"
        for name, kind in ((codes, "I8"), (scales, "F16")):
            if name not in self._home:
                raise NqEdgeError("NQ-CKPT", f"the checkpoint has no tensor {name}.")
            if self.dtype(name) != kind or len(self.shape(name)) != 2:
                raise NqEdgeError("NQ-CKPT", f"{name} is not a matrix of type {kind}.")
        if f"{module}.weight" in self._home:
            raise NqEdgeError("NQ-CKPT", f"the table {module} is stored twice, with and without codes.")
        form = TABLE_FORMATS[self.settings.tables[module]]
        rows, width = self.shape(codes)
        if not 0 < rows < LARGEST or not 0 < width < LARGEST:
            raise NqEdgeError("NQ-CKPT", f"the table {module} has {rows} rows of {width} bytes.")
        expected = (rows, form.groups(width * 8 // form.bits))
        if self.shape(scales) != expected:
            raise NqEdgeError("NQ-CKPT", f"{scales} has shape {self.shape(scales)}, not {expected}.")

    @property
    def name(self) -> str:
        """The model's own name, as far as the checkpoint remembers it."""
        return model_name(self.config, self.settings.recipe, self.folder)

    @property
    def layers(self) -> list[str]:
        """Module names of the compressed layers, in model order."""
        return list(self.settings.ranks)

    def layer(self, name: str) -> PackedLayer:
        """The factors of one compressed layer."""
        parts = {part: self.tensor(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in self._home}
        return PackedLayer(**parts)  # type: ignore[arg-type]

    def table(self, module: str) -> QuantizedTable | None:
        """The codes and scales of a table, or None when it is stored as it is (`{module}.weight`)."""
        if module not in self.settings.tables:
            return None
        parts = (self._file_of(name).tensor(name) for name in (f"{module}.codes", f"{module}.scales"))
        return QuantizedTable(self.settings.tables[module], *parts)  # type: ignore[arg-type]

    def tensor_names(self) -> list[str]:
        """Names of all stored tensors."""
        return list(self._home)

    def __contains__(self, tensor: object) -> bool:
        return tensor in self._home

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor, from its header."""
        return self._file_of(name).shape(name)

    def dtype(self, name: str) -> str:
        """Type of a stored tensor in safetensors' spelling."""
        return self._file_of(name).dtype(name)

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor's bytes lie."""
        return self._file_of(name).stored(name)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """A stored tensor as a read-only view; bfloat16 comes as `ml_dtypes.bfloat16`.

        The `.weight` of a table that is stored in codes is widened to float16.
        """
        module, _, part = name.rpartition(".")
        table = self.table(module) if part == "weight" else None
        return self._file_of(name).tensor(name) if table is None else table.dense()

    def _file_of(self, name: str) -> TensorFile:
        if name not in self._home:
            raise NqEdgeError("NQ-CKPT", f"the checkpoint has no tensor {name}.")
        return self._home[name]
