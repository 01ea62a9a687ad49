# SPDX-License-Identifier: Apache-2.0
"""Passes of the emulated CUDA library on host memory, against float64, with numpy alone.

Every buffer lies between guard bands of 0xFF bytes, which are NaN in all float types.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from nanoquant_edge.runtimes.cuda.binding import CDevice, CLinear, CPass, CType, Input, Layout

__all__ = ["DTYPES", "Emulated", "Pass", "make_layer", "run_pass"]

DTYPES = {
    CType.FLOAT32: np.dtype(np.float32),
    CType.FLOAT16: np.dtype(np.float16),
    CType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_GUARD = 1024


class Buffer:
    """Memory of exactly the array's size, aligned to 256 bytes, between two guard bands."""

    def __init__(self, array: np.ndarray) -> None:
        self.raw = np.full(array.nbytes + 2 * _GUARD + 256, 0xFF, np.uint8)
        self.begin = _GUARD + (-(self.raw.ctypes.data + _GUARD)) % 256
        self.end = self.begin + array.nbytes
        self.array = self.raw[self.begin : self.end].view(array.dtype).reshape(array.shape)
        self.array[...] = array

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int(self.raw.ctypes.data) + self.begin

    @property
    def whole(self) -> bool:
        """Whether both guard bands are as they were."""
        return bool((self.raw[: self.begin] == 0xFF).all() and (self.raw[self.end :] == 0xFF).all())


class Emulated:
    """The emulated library with the functions' types declared."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        lib.nq_cuda_tile_words.restype = ctypes.c_int64
        lib.nq_cuda_tile_words.argtypes = (ctypes.c_int64, ctypes.c_int64)
        lib.nq_cuda_make_tiles.argtypes = (ctypes.c_void_p,) + (ctypes.c_int64,) * 2 + (ctypes.c_void_p,) * 2
        lib.nq_cuda_unmake_tiles.argtypes = lib.nq_cuda_make_tiles.argtypes
        lib.nq_cuda_workspace_bytes.restype = ctypes.c_size_t
        lib.nq_cuda_forward.argtypes = (ctypes.POINTER(CPass), ctypes.c_void_p)
        self.lib = lib
        self.device = CDevice()
        assert lib.nq_cuda_describe(ctypes.byref(self.device)) == 0


@dataclass
class Layer:
    """Signs (float64), scales and buffers of a random layer."""

    u: np.ndarray
    v: np.ndarray
    scale_in: np.ndarray
    scale_mid: np.ndarray | None
    scale_out: np.ndarray
    bias: np.ndarray | None
    struct: CLinear = field(default_factory=CLinear)
    buffers: list[Buffer] = field(default_factory=list)


@dataclass
class Pass:
    """What one pass gave: its status, outputs, float64 references and whether all guard bands are whole."""

    status: int
    outputs: list[np.ndarray]
    references: list[np.ndarray]
    whole: bool

    def error(self) -> float:
        """Largest relative error of a row over all projections; NaN when an output was not written."""
        worst = 0.0
        for y, reference in zip(self.outputs, self.references, strict=True):
            errors = np.linalg.norm(y.astype(np.float64) - reference, axis=1) / np.linalg.norm(reference, axis=1)
            worst = float(np.fmax(worst, errors.max())) if np.isfinite(errors).all() else float("nan")
        return worst


def make_layer(
    emulated: Emulated, rng: np.random.Generator, sizes: tuple[int, int, int], scale: CType, *, mid: bool, bias: bool
) -> Layer:
    """A random layer of sizes (in, rank, out) in layout 1, its padding bits random before the conversion."""
    n, rank, m = sizes
    made: list[Buffer] = []

    def matrix(rows: int, columns: int) -> tuple[np.ndarray, int]:
        width = (columns + 31) // 32
        bits = rng.integers(0, 2, (rows, width * 32), dtype=np.uint64)
        words = (bits.reshape(rows, width, 32) << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)
        source = Buffer(words.view(np.int32))
        tiles = Buffer(np.full(emulated.lib.nq_cuda_tile_words(rows, columns), -1, np.int32))
        assert emulated.lib.nq_cuda_make_tiles(source.pointer, rows, columns, tiles.pointer, None) == 0
        made.extend((source, tiles))
        return 1.0 - 2.0 * bits[:, :columns].astype(np.float64), tiles.pointer

    def vector(count: int, factor: float) -> np.ndarray:
        spread = np.exp2(rng.uniform(-3, 3, count)) * rng.choice((-1.0, 1.0), count) * factor
        return spread.astype(DTYPES[scale])

    def keep(array: np.ndarray | None) -> int | None:
        if array is None:
            return None
        made.append(Buffer(array))
        return made[-1].pointer

    v, v_tiles = matrix(rank, n)
    u, u_tiles = matrix(m, rank)
    layer = Layer(
        u=u,
        v=v,
        scale_in=vector(n, n**-0.5),
        scale_mid=vector(rank, 1.0) if mid else None,
        scale_out=vector(m, rank**-0.5),
        bias=rng.normal(size=m).astype(DTYPES[scale]) if bias else None,
        buffers=made,
    )
    layer.struct = CLinear(n, rank, m, Layout.TILES_16X256, scale, v_tiles, u_tiles)
    layer.struct.scale_in, layer.struct.scale_mid = keep(layer.scale_in), keep(layer.scale_mid)
    layer.struct.scale_out, layer.struct.bias = keep(layer.scale_out), keep(layer.bias)
    return layer


def _input(kind: Input, x: np.ndarray, n: int, weight: np.ndarray, eps: float) -> np.ndarray:
    if kind == Input.RMS_NORM:
        return x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight
    if kind == Input.SILU:
        return x[:, :n] / (1 + np.exp(-x[:, :n])) * x[:, n:]
    if kind == Input.GELU:
        gate = x[:, :n]
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * x[:, n:]
    return x


def run_pass(
    emulated: Emulated,
    sizes: list[tuple[int, int, int]],
    rows: int,
    *,
    algorithm: int,
    x_type: CType = CType.FLOAT16,
    y_type: CType = CType.FLOAT32,
    scale: CType = CType.FLOAT32,
    kind: Input = Input.PLAIN,
    residual: bool = False,
    mid: bool = True,
    bias: bool = True,
    seed: int = 0,
) -> Pass:
    """One pass over a group of random layers with outlier channels, poisoned outputs and a dirty workspace."""
    rng = np.random.default_rng(seed)
    layers = [make_layer(emulated, rng, size, scale, mid=mid, bias=bias) for size in sizes]
    n, eps = sizes[0][0], 1e-5
    width = n * (2 if kind in (Input.SILU, Input.GELU) else 1)
    values = rng.normal(size=(rows, -(-width // 8) * 8))
    values[:, :: max(1, n // 3)] *= 30 if kind in (Input.SILU, Input.GELU) else 100
    values[:, width:] = np.nan
    x = Buffer(values.astype(DTYPES[x_type]))
    weight = Buffer(rng.normal(size=n).astype(np.float32))
    given = _input(kind, x.array[:, :width].astype(np.float64), n, weight.array.astype(np.float64), eps)
    structs = (CLinear * len(layers))(*[layer.struct for layer in layers])
    call = CPass(structs, len(layers), x_type, y_type, kind, 0, algorithm, rows, x.pointer, x.array.shape[1], eps)
    call.norm_weight = weight.pointer
    outputs, references, buffers = [], [], [x, weight]
    for i, layer in enumerate(layers):
        m = sizes[i][2]
        stride = -(-m // 8) * 8
        out = Buffer(np.full((rows, stride), np.nan, DTYPES[y_type]))
        middle = (given * layer.scale_in.astype(np.float64)) @ layer.v.T
        if layer.scale_mid is not None:
            middle = middle * layer.scale_mid.astype(np.float64)
        reference = (middle @ layer.u.T) * layer.scale_out.astype(np.float64)
        if layer.bias is not None:
            reference = reference + layer.bias.astype(np.float64)
        if residual:
            # In place: the residual is what y holds.
            out.array[:, :m] = rng.normal(size=(rows, m)).astype(DTYPES[y_type])
            reference = reference + out.array[:, :m].astype(np.float64)
            call.residual[i] = out.pointer
        call.y[i], call.y_stride[i] = out.pointer, stride
        outputs.append(out.array[:, :m])
        references.append(reference)
        buffers += [out, *layer.buffers]
    workspace = Buffer(np.full(emulated.lib.nq_cuda_workspace_bytes(ctypes.byref(call)), 0xFF, np.uint8))
    call.workspace, call.workspace_bytes = workspace.pointer, workspace.array.nbytes
    status = emulated.lib.nq_cuda_forward(ctypes.byref(call), None)
    return Pass(status, outputs, references, all(buffer.whole for buffer in [*buffers, workspace]))
