# SPDX-License-Identifier: Apache-2.0
"""Files of other NanoQuant implementations as named arrays: `torch.save` dictionaries, safetensors and GGUF."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.lfs_pointer import check_is_no_pointer
from ..formats.safetensors_file import TensorFile
from ..models.gguf.layout import LINEARS, halves, parameter_name
from ..system.extras import install_command
from .layers import PARTS

if TYPE_CHECKING:
    from ..formats.gguf_header import GgufTensor
    from ..models.config import DecoderConfig

__all__ = ["read_foreign"]

Arrays = dict[str, NDArray[np.generic]]
_GGUF_NAME = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(\w+)")
#: ggml's number of a plain type -> numpy's; 30 is bfloat16.
_GGUF_DTYPES: dict[int, str] = {0: "float32", 1: "float16", 26: "int32", 30: "bfloat16"}
#: Tensors that are taken from the dense model, where they are not rounded, or that its configuration describes.
_FROM_THE_MODEL = ("token_embd.weight", "output.weight", "rope_freqs.weight")
_PREFIXES = ("module.", "base_model.model.")


def read_foreign(path: Path, config: DecoderConfig) -> Arrays:
    """The tensors of a file, named as in Hugging Face models.

    Args:
        path: a `torch.save` file, a safetensors file, a folder of safetensors, or a GGUF file.
        config: of the base model; GGUF files need it to put rotary rows in order.

    Raises:
        NqEdgeError: NQ-CKPT when the file is missing, damaged or of another kind.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        found: Arrays = {}
        for file in files:
            found.update(_safetensors(file))
        if not files:
            raise NqEdgeError("NQ-CKPT", f"{path} holds no safetensors files.", "Pass the file itself.")
        return found
    check_is_no_pointer(path, "NQ-CKPT")
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise NqEdgeError("NQ-CKPT", f"cannot read {path}: {error.strerror}.") from error
    if magic == b"GGUF":
        return _gguf(path, config)
    if magic == b"PK\x03\x04":
        return _torch(path)
    return _safetensors(path)


def _plain_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _safetensors(path: Path) -> Arrays:
    file = TensorFile(path)
    return {_plain_name(name): file.tensor(name) for name in file.names()}


def _torch(path: Path) -> Arrays:
    try:
        import torch
    except ImportError as error:
        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", "reading a torch.save file needs the package torch.", hint) from error
    from ..models.torch_archive import load_tensors

    def array(value: Any) -> NDArray[np.generic]:
        if value.dtype == torch.bfloat16:
            import ml_dtypes

            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    try:
        return {_plain_name(name): array(value) for name, value in load_tensors(path, "NQ-CKPT").items()}
    except (TypeError, RuntimeError) as error:  # types that numpy does not have
        raise NqEdgeError("NQ-CKPT", f"{path} holds a tensor of a type that is not read ({error}).") from error


def _gguf(path: Path, config: DecoderConfig) -> Arrays:
    from ..formats.gguf_header import read_gguf_header

    try:
        header = read_gguf_header(path)
    except NqEdgeError as error:
        raise NqEdgeError("NQ-CKPT", error.message) from error
    # llama.cpp keeps rotary pairs of these architectures side by side; others stay in halves.
    paired = header.fields.get("general.architecture") in ("llama", "mistral")
    packed = {name.rpartition(".")[0] for name in header.tensors if name.endswith(".nq_v")}
    found: Arrays = {}
    for name, tensor in header.tensors.items():
        match = _GGUF_NAME.fullmatch(name)
        if match is None or name.rpartition(".")[0] not in packed or match[3] not in PARTS:
            if name not in _FROM_THE_MODEL:
                found.update(_norm(path, name, tensor, header.size, config))
            continue
        if match[2] not in LINEARS:
            raise NqEdgeError("NQ-CKPT", f"{path} compresses {name[:200]!r}, which no supported family has.")
        array = _gguf_tensor(path, name, tensor, header.size)
        if paired and match[2] in ("attn_q", "attn_k") and PARTS[match[3]] in ("u_packed", "scale_out", "bias"):
            array = _in_halves(array, config.num_heads if match[2] == "attn_q" else config.num_kv_heads)
        found[f"model.layers.{match[1]}.{LINEARS[match[2]]}.{match[3]}"] = array
    return found


def _norm(path: Path, name: str, tensor: GgufTensor, size: int, config: DecoderConfig) -> Arrays:
    """A tensor outside of the packed layers, which must be a norm, under its Hugging Face name."""
    parameter = parameter_name(name, config.structure)
    if parameter not in config.norm_shapes():
        raise NqEdgeError("NQ-CKPT", f"{path} holds {name[:200]!r}, which the model has no place for.")
    values = np.asarray(_gguf_tensor(path, name, tensor, size), np.float32)
    return {parameter: values - 1 if config.structure.norm == "rms_plus_one" else values}


def _gguf_tensor(path: Path, name: str, tensor: GgufTensor, size: int) -> NDArray[np.generic]:
    spelled = _GGUF_DTYPES.get(tensor.kind)
    if spelled is None:
        raise NqEdgeError("NQ-CKPT", f"{path}: {name[:200]!r} has the type {tensor.kind}, not F32, F16, BF16 or I32.")
    if spelled == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(spelled)
    if not tensor.shape or tensor.start + math.prod(tensor.shape) * dtype.itemsize > size:
        raise NqEdgeError("NQ-CKPT", f"{path} is damaged: the data of {name[:200]!r} passes the end of the file.")
    return np.memmap(path, dtype, "r", tensor.start, tensor.shape)


def _in_halves(array: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    if array.shape[0] % (2 * heads):
        raise NqEdgeError("NQ-CKPT", f"{array.shape[0]} rows are not {heads} heads of an even width.")
    return halves(array, heads)
