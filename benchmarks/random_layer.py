# SPDX-License-Identifier: Apache-2.0
"""A compressed layer of random signs in PyTorch's memory, and one pass of it: for measurements of the kernels alone."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import torch

from nanoquant_edge.formats.checkpoint import words_for
from nanoquant_edge.runtimes.cuda import binding
from nanoquant_edge.runtimes.cuda.binding import Algorithm, CLinear, CPass, CType, Layout, Precision

__all__ = ["RandomLayer", "random_layer"]

_TYPES = {torch.float16: CType.FLOAT16, torch.bfloat16: CType.BFLOAT16, torch.float32: CType.FLOAT32}


@dataclass
class RandomLayer:
    """One layer and the memory of its passes.

    Attributes:
        tensors: what the structure points into.
        described: `nq_linear`.
        algorithm, precision: of its passes.
        workspace: grows with the passes.
    """

    tensors: list[torch.Tensor]
    described: CLinear
    algorithm: Algorithm = Algorithm.AUTO
    precision: Precision = Precision.EXACT
    workspace: torch.Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of an output row, a multiple of 8."""
        return -(-int(self.described.out_features) // 8) * 8

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """One pass on the current stream: x (rows, in_features) to out (rows, width)."""
        layers = (CLinear * 1)(self.described)
        asked = CPass(
            layers=layers,
            count=1,
            x_type=_TYPES[x.dtype],
            y_type=_TYPES[out.dtype],
            precision=self.precision,
            algorithm=self.algorithm,
            rows=x.shape[0],
            x=x.data_ptr(),
            x_stride=x.stride(0),
        )
        asked.y[0], asked.y_stride[0] = out.data_ptr(), out.stride(0)
        library = binding.library()
        need = library.nq_cuda_workspace_bytes(byref(asked))
        if not need:
            binding.check(binding.Status.NO_KERNEL, f"a pass of {x.shape[0]} rows")
        if self.workspace is None or self.workspace.numel() < need:
            self.workspace = torch.empty(need, dtype=torch.uint8, device=x.device)
        asked.workspace, asked.workspace_bytes = self.workspace.data_ptr(), self.workspace.numel()
        binding.check(library.nq_cuda_forward(byref(asked), torch.cuda.current_stream().cuda_stream), "a pass")


def random_layer(
    out_features: int,
    in_features: int,
    *,
    rank: int,
    generator: torch.Generator,
    algorithm: Algorithm = Algorithm.AUTO,
    precision: Precision = Precision.EXACT,
) -> RandomLayer:
    """A layer of random signs and bfloat16 scales on the generator's device; entries are about 1 / sqrt(n)."""
    device, library = generator.device, binding.library()
    stream = torch.cuda.current_stream().cuda_stream

    def tiles(rows: int, columns: int) -> torch.Tensor:
        shape = (rows, words_for(columns))
        words = torch.randint(-(2**31), 2**31, shape, generator=generator, device=device, dtype=torch.int32)
        made = torch.empty(binding.tile_words(rows, columns), dtype=torch.int32, device=device)
        binding.check(library.nq_cuda_make_tiles(words.data_ptr(), rows, columns, made.data_ptr(), stream), "tiles")
        return made

    def scale(length: int) -> torch.Tensor:
        spread = 0.5 + torch.rand(length, generator=generator, device=device)
        return (spread * (rank * in_features) ** -0.25).to(torch.bfloat16)

    v, u = tiles(rank, in_features), tiles(out_features, rank)
    scale_in, scale_out = scale(in_features), scale(out_features)
    torch.cuda.synchronize()  # kernels may read constants ahead of stream order
    described = CLinear(
        in_features=in_features,
        rank=rank,
        out_features=out_features,
        layout=Layout.TILES_16X256,
        scale_type=CType.BFLOAT16,
        v_words=v.data_ptr(),
        u_words=u.data_ptr(),
        scale_in=scale_in.data_ptr(),
        scale_out=scale_out.data_ptr(),
    )
    return RandomLayer([v, u, scale_in, scale_out], described, algorithm, precision)
