# SPDX-License-Identifier: Apache-2.0
"""A random binary layer on a GPU, its float64 result, and the C interface through ctypes.

For the checks of the CUDA kernels only: needs torch with a GPU. The float64 side unpacks the bits
itself and shares nothing with the kernels.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch

from tests.plugins.cuda.capi import Linear, Pass

__all__ = ["DTYPES", "Library", "Linear", "Pass", "RandomLayer", "make_input", "reference", "uncancelled"]

DTYPES = {0: torch.float32, 1: torch.float16, 2: torch.bfloat16}


class Library:
    """The built library, with the forced block shapes of `forced.cu`."""

    def __init__(self, path: str) -> None:
        """Loads it and declares the functions in use."""
        self.c = ctypes.CDLL(path)
        self.c.nq_cuda_workspace_bytes.restype = ctypes.c_size_t
        self.c.nq_cuda_tile_words.restype = ctypes.c_int64
        self.c.nq_cuda_tile_words.argtypes = [ctypes.c_int64, ctypes.c_int64]
        self.c.nq_cuda_make_tiles.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self.c.nq_cuda_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.c.nq_cuda_error_text.restype = ctypes.c_char_p
        self.forced = (ctypes.c_int * 2).in_dll(self.c, "nq_forced_shape")

    def force(self, first: int, second: int) -> None:
        """Block shapes of the two stages; -1 leaves one to the model."""
        self.forced[0], self.forced[1] = first, second

    def tiles(self, words: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Layout 0 words to layout 1 on the current stream."""
        out = torch.empty(self.c.nq_cuda_tile_words(rows, columns), dtype=torch.int32, device="cuda")
        self.ok(self.c.nq_cuda_make_tiles(words.data_ptr(), rows, columns, out.data_ptr(), stream()))
        return out

    def ok(self, status: int) -> None:
        """Raises RuntimeError with the library's words unless the status is 0."""
        if status:
            raise RuntimeError(f"status {status}: {self.c.nq_cuda_error_text().decode()}")


def stream() -> int:
    """The current torch stream as a pointer."""
    return torch.cuda.current_stream().cuda_stream


def signs(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Words [rows, k] to float64 signs [rows, columns]: bit 0 is +1, bit 1 is -1."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    return 1.0 - 2.0 * bits.reshape(words.shape[0], -1)[:, :columns].double()


@dataclass
class RandomLayer:
    """Random bits and scales spread over 2^-3 to 2^3; results small enough for float16."""

    in_features: int
    rank: int
    out_features: int
    scale_type: int = 0
    mid: bool = True
    bias: bool = True
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def build(self, library: Library) -> RandomLayer:
        """Draws the tensors and orders the tiles."""
        n, r, m = self.in_features, self.rank, self.out_features

        def words(rows: int, columns: int) -> torch.Tensor:
            size = (rows, (columns + 31) // 32)
            return torch.randint(-(2**31), 2**31, size, dtype=torch.int32, device="cuda")

        def scale(size: int, unit: float) -> torch.Tensor:
            spread = torch.exp2(torch.rand(size, device="cuda") * 6 - 3)
            return (spread * unit).to(DTYPES[self.scale_type])

        self.tensors = {
            "v": words(r, n),
            "u": words(m, r),
            "scale_in": scale(n, n**-0.5),
            "scale_mid": scale(r, r**-0.5),
            "scale_out": scale(m, 1 / 64 if self.mid else r**-0.5 / 64),
            "bias": torch.randn(m, device="cuda").to(DTYPES[self.scale_type]),
        }
        self.tensors["v_tiles"] = library.tiles(self.tensors["v"], r, n)
        self.tensors["u_tiles"] = library.tiles(self.tensors["u"], m, r)
        return self

    def struct(self) -> Linear:
        """The C description."""
        t = {name: tensor.data_ptr() for name, tensor in self.tensors.items()}
        return Linear(
            self.in_features,
            self.rank,
            self.out_features,
            1,
            self.scale_type,
            t["v_tiles"],
            t["u_tiles"],
            t["scale_in"],
            t["scale_mid"] if self.mid else None,
            t["scale_out"],
            t["bias"] if self.bias else None,
        )


def make_input(rows: int, columns: int, x_type: int, outliers: float) -> torch.Tensor:
    """Gaussian rows with about one channel in a hundred `outliers` times larger, stride padded."""
    stride = (columns + 7) // 8 * 8 + 8
    x = torch.randn(rows, stride, device="cuda")
    channels = torch.rand(stride, device="cuda") < 0.01
    channels[torch.randint(columns, (1,), device="cuda")] = True
    x[:, channels] *= outliers
    x[:, columns:] = float("nan")  # nothing past the row may count
    return x.to(DTYPES[x_type])


def input_of(x: torch.Tensor, n: int, kind: int, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """f(x) in float64."""
    f = x[:, :n].double()
    if kind == 1:
        return f / torch.sqrt((f * f).mean(1, keepdim=True) + eps) * weight.double()
    if kind == 2:
        return torch.nn.functional.silu(f) * x[:, n : 2 * n].double()
    if kind == 3:
        return torch.nn.functional.gelu(f, approximate="tanh") * x[:, n : 2 * n].double()
    return f


def uncancelled(layer: RandomLayer, x: torch.Tensor, kind: int, weight: torch.Tensor) -> torch.Tensor:
    """Root of the expected squared row norms of y over random signs, without bias."""
    t = layer.tensors
    f = input_of(x, layer.in_features, kind, weight, 1e-5) * t["scale_in"].double()
    mid = t["scale_mid"].double().norm() if layer.mid else layer.rank**0.5
    return f.norm(dim=1) * mid * t["scale_out"].double().norm()


def reference(
    layer: RandomLayer,
    x: torch.Tensor,
    kind: int,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """The layer in float64 on the same bits, scales and rounded inputs."""
    t, n = layer.tensors, layer.in_features
    f = input_of(x, n, kind, weight, eps)
    middle = (f * t["scale_in"].double()) @ signs(t["v"], n).T
    if layer.mid:
        middle = middle * t["scale_mid"].double()
    y = middle @ signs(t["u"], layer.rank).T * t["scale_out"].double()
    if layer.bias:
        y = y + t["bias"].double()
    return y if residual is None else y + residual.double()
