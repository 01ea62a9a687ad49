# SPDX-License-Identifier: Apache-2.0
"""Random layers on the GPU, guarded buffers, one checked pass, and the float64 reference.

Signs are drawn as signs, and the reference computes with those, so that it shares nothing with the packing. Every
buffer lies between two guard bands of 0xFF bytes, which are NaN in all three float types: a read outside that counts
gives NaN, and a write outside is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.plugins.cuda import capi

__all__ = ["DTYPES", "Guarded", "Layer", "Run", "make_layer", "make_x", "reference", "row_errors"]

DTYPES = {capi.FLOAT32: torch.float32, capi.FLOAT16: torch.float16, capi.BFLOAT16: torch.bfloat16}
#: largest relative error of a row against float64, by (x type, y type)
LIMITS = {
    (capi.FLOAT16, capi.FLOAT16): 1e-3,
    (capi.FLOAT16, capi.FLOAT32): 1e-3,
    (capi.BFLOAT16, capi.BFLOAT16): 2.5e-3,
    (capi.BFLOAT16, capi.FLOAT32): 1e-3,
}
#: rounding a value to bfloat16 alone costs up to 2^-8; over many outputs it averages to 1.7e-3
_FEW_OUTPUTS, _FEW_LIMIT = 256, 4.5e-3
#: input, middle and output rounded to float16 cost up to 3 x 2^-11 where sums have too few terms to average
_FEW_TERMS, _FEW_TERMS_LIMIT = 8, 1.5e-3
#: below this size of any dimension a row's sum may cancel, and the error is measured against its expected norm
_SMALL = 64
_GUARD = 1024


class Guarded:
    """Device memory of exactly `size` elements between two guard bands; all of it starts as 0xFF bytes."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.bytes = size * dtype.itemsize
        self.raw = torch.full((self.bytes + 2 * _GUARD,), 0xFF, dtype=torch.uint8, device="cuda")
        self.data = self.raw[_GUARD : _GUARD + self.bytes].view(dtype)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Guarded:
        """A guarded copy."""
        made = cls(tensor.numel(), tensor.dtype)
        made.data.copy_(tensor.reshape(-1))
        return made

    @property
    def pointer(self) -> int:
        """Device address of the first element, aligned to 512 bytes."""
        return self.data.data_ptr() if self.bytes else self.raw.data_ptr() + _GUARD

    def broken(self) -> torch.Tensor:
        """Whether a guard byte changed (a tensor, so that one synchronization reads many)."""
        return (self.raw[:_GUARD] != 0xFF).any() | (self.raw[_GUARD + self.bytes :] != 0xFF).any()


def _pack(signs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Layout 0 words, written from the format's description; padding bits are random."""
    rows, columns = signs.shape
    width = (columns + 31) // 32
    bits = torch.randint(0, 2, (rows, width * 32), generator=generator, device="cuda")
    bits[:, :columns] = signs < 0
    weights = 2 ** torch.arange(32, device="cuda", dtype=torch.int64)
    words = (bits.view(rows, width, 32) * weights).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@dataclass
class Layer:
    """One layer: its signs (int8), its scales (typed, on the GPU) and its description for the library."""

    u: torch.Tensor
    v: torch.Tensor
    scale_in: torch.Tensor
    scale_mid: torch.Tensor | None
    scale_out: torch.Tensor
    bias: torch.Tensor | None
    struct: capi.Linear = field(default_factory=capi.Linear)
    buffers: list[Guarded] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(in_features, rank, out_features)."""
        return self.v.shape[1], self.v.shape[0], self.u.shape[0]


def make_layer(
    cuda: capi.Cuda,
    n: int,
    rank: int,
    m: int,
    *,
    scale: int = capi.FLOAT32,
    mid: bool = True,
    bias: bool = True,
    seed: int = 0,
    gain: float = 1.0,
) -> Layer:
    """A random layer in layout 1: scales of both signs over 2^-3 to 2^3, outputs near 1 for inputs near 1 / gain."""
    generator = torch.Generator("cuda").manual_seed(hash((seed, n, rank, m)) % 2**31)

    def signs(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(0, 2, (rows, columns), generator=generator, device="cuda", dtype=torch.int8) * 2 - 1

    def scales(count: int, factor: float) -> torch.Tensor:
        spread = torch.rand(count, generator=generator, device="cuda") * 6 - 3
        sign = torch.randint(0, 2, (count,), generator=generator, device="cuda") * 2 - 1
        return (torch.exp2(spread) * sign * factor).to(DTYPES[scale])

    layer = Layer(
        u=signs(m, rank),
        v=signs(rank, n),
        scale_in=scales(n, n**-0.5),
        scale_mid=scales(rank, 1.0) if mid else None,
        scale_out=scales(m, gain * rank**-0.5),
        bias=torch.randn(m, generator=generator, device="cuda").to(DTYPES[scale]) if bias else None,
    )

    def keep(tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        layer.buffers.append(Guarded.of(tensor))
        return layer.buffers[-1].pointer

    def tiles(matrix: torch.Tensor) -> int:
        rows, columns = matrix.shape
        words = Guarded.of(_pack(matrix, generator))
        made = Guarded(cuda.lib.nq_cuda_tile_words(rows, columns), torch.int32)
        stream = torch.cuda.current_stream().cuda_stream
        status = cuda.lib.nq_cuda_make_tiles(words.pointer, rows, columns, made.pointer, stream)
        assert status == capi.Status.OK, cuda.text(status)
        layer.buffers.append(made)
        return made.pointer

    layer.struct = capi.Linear(n, rank, m, capi.TILES, scale, tiles(layer.v), tiles(layer.u))
    layer.struct.scale_in = keep(layer.scale_in)
    layer.struct.scale_mid = keep(layer.scale_mid)
    layer.struct.scale_out = keep(layer.scale_out)
    layer.struct.bias = keep(layer.bias)
    torch.cuda.synchronize()
    return layer


def make_x(rows: int, columns: int, kind: int, seed: int = 0, *, outliers: bool = True, size: float = 1.0) -> Any:
    """Random rows; with `outliers`, about one channel in 97 is a hundred times larger."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, device="cuda") * size
    if outliers:
        x[:, 3::97] *= 100.0
    return x.to(DTYPES[kind])


@dataclass
class Run:
    """One pass, its buffers poisoned and guarded; `launch` may be called again, on any stream."""

    cuda: capi.Cuda
    layers: list[Layer]
    x: torch.Tensor  # (rows, in_features), or (rows, 2 in_features) for gated inputs
    y_type: int
    algorithm: int = capi.AUTO
    input: int = capi.PLAIN
    precision: int = capi.EXACT
    norm_weight: torch.Tensor | None = None
    norm_eps: float = 1e-6
    residual: list[torch.Tensor | None] | None = None
    in_place: bool = False  # the residual is y's own former contents
    padding: int = 8  # columns between one row and the next, beyond what alignment needs

    def __post_init__(self) -> None:
        self.rows = self.x.shape[0]
        self.structs = (capi.Linear * len(self.layers))(*[layer.struct for layer in self.layers])
        self.x_type = next(key for key, value in DTYPES.items() if value == self.x.dtype)
        self.call = call = capi.Pass(self.structs, len(self.layers), self.x_type, self.y_type, self.input)
        call.precision, call.algorithm, call.rows, call.norm_eps = (
            self.precision,
            self.algorithm,
            self.rows,
            self.norm_eps,
        )
        self.guarded: list[Guarded] = []
        self.x_view, call.x, call.x_stride = self._strided(self.x, self.x.dtype)
        self.y: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            m = layer.shape[2]
            view, call.y[i], call.y_stride[i] = self._strided((self.rows, m), DTYPES[self.y_type])
            self.y.append(view)
            given = self.residual[i] if self.residual else None
            if given is not None and self.in_place:
                call.residual[i] = call.y[i]
            elif given is not None:
                _, call.residual[i], _ = self._strided(given, given.dtype)
        if self.norm_weight is not None:
            self.guarded.append(Guarded.of(self.norm_weight.float()))
            call.norm_weight = self.guarded[-1].pointer
        size = self.cuda.workspace_bytes(call)
        self.workspace = Guarded(size, torch.uint8)
        self.guarded.append(self.workspace)
        call.workspace, call.workspace_bytes = self.workspace.pointer, size

    def _strided(self, contents: Any, dtype: torch.dtype) -> tuple[torch.Tensor, int, int]:
        """A guarded matrix with poisoned columns between its rows: view, address, stride."""
        rows, columns = contents if isinstance(contents, tuple) else contents.shape
        stride = (columns + 7) // 8 * 8 + self.padding
        buffer = Guarded(rows * stride, dtype)
        self.guarded.append(buffer)
        view = buffer.data.view(rows, stride)[:, :columns]
        if not isinstance(contents, tuple):
            view.copy_(contents)
        return view, buffer.pointer, stride

    def poison(self) -> None:
        """NaN into the outputs (or the residual where it is y itself) and garbage into the workspace."""
        for i, view in enumerate(self.y):
            given = self.residual[i] if self.residual and self.in_place else None
            if given is None:
                view.fill_(float("nan"))
            else:
                view.copy_(given)
        self.workspace.data.fill_(0xFF)

    def launch(self, stream: torch.cuda.Stream | None = None) -> None:
        """Enqueue the pass."""
        handle = (stream or torch.cuda.current_stream()).cuda_stream
        status = self.cuda.forward(self.call, handle)
        assert status == capi.Status.OK, self.cuda.text(status)

    def outside(self) -> bool:
        """Whether anything was written outside the outputs: guards, and columns between rows."""
        flags = [buffer.broken() for buffer in self.guarded]
        flags += [buffer.broken() for layer in self.layers for buffer in layer.buffers]
        for view in self.y:
            rows, columns = view.shape
            gaps = view.as_strided((rows, view.stride(0) - columns), view.stride(), view.storage_offset() + columns)
            flags.append(~gaps.isnan().all())
        return bool(torch.stack(flags).any())

    def checked(self) -> list[torch.Tensor]:
        """Poison, launch, look for stray writes; the outputs."""
        self.poison()
        self.launch()
        assert not self.outside(), "written outside the outputs"
        return self.y

    @property
    def limit(self) -> float:
        """The largest error against float64 that a row may have."""
        few = min(layer.shape[2] for layer in self.layers) < _FEW_OUTPUTS
        if all(max(layer.shape) < _FEW_TERMS for layer in self.layers) and self.y_type == capi.FLOAT16:
            return _FEW_TERMS_LIMIT
        return _FEW_LIMIT if few and self.y_type == capi.BFLOAT16 else LIMITS[self.x_type, self.y_type]

    def errors(self) -> torch.Tensor:
        """Relative error of each row of each layer after `checked`."""
        x = self.x.double()
        found = []
        for i, (layer, y) in enumerate(zip(self.layers, self.y, strict=True)):
            given = self.residual[i] if self.residual else None
            found.append(row_errors(layer, transform(x, self.input, self.norm_weight, self.norm_eps), y, given))
        return torch.cat(found)


def transform(x: torch.Tensor, kind: int, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """f(x) of nq_input in float64."""
    if kind == capi.RMS_NORM:
        assert weight is not None
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight.double()
    if kind in (capi.SILU, capi.GELU):
        gate, up = x.chunk(2, -1)
        if kind == capi.SILU:
            return gate / (1 + torch.exp(-gate)) * up
        return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    return x


def reference(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y without bias, and each row's norm as expected over random signs; x is f(x) in float64."""
    scaled = x * layer.scale_in.double()
    mid = torch.ones(layer.v.shape[0], device="cuda", dtype=torch.float64)
    if layer.scale_mid is not None:
        mid = layer.scale_mid.double()
    out = layer.scale_out.double()
    y = ((scaled @ layer.v.double().T) * mid) @ layer.u.double().T * out
    return y, scaled.norm(dim=-1) * mid.norm() * out.norm()


def row_errors(layer: Layer, x: torch.Tensor, y: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """||y - y*|| / ||y*|| per row; NaN counts as infinite."""
    wanted, expected = reference(layer, x)
    if layer.bias is not None:
        wanted = wanted + layer.bias.double()
    if residual is not None:
        wanted = wanted + residual.double()
    norm = wanted.norm(dim=-1)
    if min(layer.shape) < _SMALL:
        norm = torch.maximum(norm, expected)
    error = (y.double() - wanted).norm(dim=-1) / norm.clamp_min(1e-300)
    return torch.where(error.isfinite(), error, torch.inf)
