# SPDX-License-Identifier: Apache-2.0
"""A group of compressed layers with one input, called with preallocated outputs: what a decoder is made of.

On a GPU a call fills in four addresses of a prepared C structure, so that it costs microseconds and may be captured
into a CUDA graph. Elsewhere the same function runs in plain PyTorch, slowly, as the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import NqEdgeError
from ..cuda import binding
from ..cuda.binding import Algorithm, Input, Precision
from .layers import C_TYPES, TiledLayer
from .tiles import tile_signs

__all__ = ["LinearGroup", "Workspace", "apply_input", "reference_linear"]

_ALIGN = 8  # elements: rows and segments begin at multiples of 16 bytes


class Workspace:
    """Scratch memory that passes of one stream share; grows, and keeps what captured graphs still point to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: list[torch.Tensor] = []

    def reserve(self, size: int) -> tuple[int, int]:
        """Address and size of at least `size` bytes, aligned to 256."""
        if not self._held or self._held[-1].numel() < size:
            self._held.append(torch.empty(size, dtype=torch.uint8, device=self._device))
        return self._held[-1].data_ptr(), self._held[-1].numel()


def apply_input(
    x: torch.Tensor, kind: Input, *, norm_weight: torch.Tensor | None = None, norm_eps: float = 0.0
) -> torch.Tensor:
    """What `kind` does to x (`nq_input` of nq_cuda.h), in float32."""
    x = x.float()
    if kind == Input.RMS_NORM:
        assert norm_weight is not None
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps) * norm_weight.float()
    if kind == Input.SILU:
        gate, up = x.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    if kind == Input.GELU:
        gate, up = x.chunk(2, -1)
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    return x


def reference_linear(layer: TiledLayer, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The layer's product in plain PyTorch, `dtype` (..., out_features); any device, slow."""
    inner = (x.to(dtype) * layer.scale_in.to(dtype)) @ tile_signs(
        layer.v_tiles, (layer.rank, layer.in_features), dtype
    ).T
    if layer.scale_mid is not None:
        inner = inner * layer.scale_mid.to(dtype)
    result = (inner @ tile_signs(layer.u_tiles, (layer.out_features, layer.rank), dtype).T) * layer.scale_out.to(dtype)
    return result if layer.bias is None else result + layer.bias.to(dtype)


class LinearGroup:
    """One to four layers computed from the same x in one pass.

    Args:
        layers: with one in_features and one scale type between them.
        workspace: scratch memory; calls that may overlap need different ones.
        input: what is applied to x first; a gated input has rows of 2 in_features.
        norm_weight: (in_features,), for `Input.RMS_NORM`.
        norm_eps: its epsilon.
        precision: `Precision.INT8` allows activations of 8 bits.
        algorithm: which kernels run; other choices than AUTO are for measurements.

    Attributes:
        in_features: columns of x, without the gate's.
        offsets: where each layer's columns begin in an output row.
        width: columns of an output row; segments are padded to multiples of 8.
        norm_weight: the same in float32.

    Raises:
        NqEdgeError: NQ-CUDA when the layers do not form a group.
    """

    def __init__(
        self,
        layers: Sequence[TiledLayer],
        workspace: Workspace,
        *,
        input: Input = Input.PLAIN,
        norm_weight: torch.Tensor | None = None,
        norm_eps: float = 0.0,
        precision: Precision = Precision.EXACT,
        algorithm: Algorithm = Algorithm.AUTO,
    ) -> None:
        if not 1 <= len(layers) <= binding.MAX_GROUP:
            raise NqEdgeError("NQ-CUDA", f"a group has 1 to {binding.MAX_GROUP} layers, not {len(layers)}.", "")
        if len({(layer.in_features, layer.scale_out.dtype) for layer in layers}) != 1:
            raise NqEdgeError("NQ-CUDA", "the layers of a group differ in in_features or in the scales' type.", "")
        self.layers = tuple(layers)
        self.in_features = layers[0].in_features
        self.offsets, self.width = [], 0
        for layer in layers:
            self.offsets.append(self.width)
            self.width += -(-layer.out_features // _ALIGN) * _ALIGN
        self.norm_weight = None if norm_weight is None else norm_weight.float().contiguous()
        self._input, self._norm_eps = input, norm_eps
        self._workspace = workspace
        self._structs = (binding.CLinear * len(layers))(*[layer.c_struct() for layer in layers])
        self._pass = binding.CPass(
            layers=self._structs,
            count=len(layers),
            input=input,
            precision=precision,
            algorithm=algorithm,
            norm_eps=norm_eps,
            norm_weight=None if self.norm_weight is None else self.norm_weight.data_ptr(),
        )
        self._needs: dict[tuple[int, torch.dtype, torch.dtype], int] = {}

    def __call__(self, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None) -> None:
        """Compute all layers.

        Args:
            x: float16 or bfloat16 (rows, in_features or twice that), rows at multiples of 16 bytes.
            out: (rows, width), x's type or float32; column `offsets[i]` is where layer i's output begins.
            residual: added to the result; like `out`, may be `out` itself.

        Raises:
            NqEdgeError: NQ-CUDA when the kernel cannot run.
        """
        if not x.is_cuda:
            self._reference(x, out, residual)
            return
        described, rows = self._pass, x.shape[0]
        described.rows, described.x_type, described.y_type = rows, C_TYPES[x.dtype], C_TYPES[out.dtype]
        described.x, described.x_stride = x.data_ptr(), x.stride(0)
        size, base, stride = out.element_size(), out.data_ptr(), out.stride(0)
        for i, offset in enumerate(self.offsets):
            described.y[i], described.y_stride[i] = base + offset * size, stride
            described.residual[i] = None if residual is None else residual.data_ptr() + offset * size
        described.workspace, described.workspace_bytes = self._workspace.reserve(self._need(x, out))
        status = binding.library().nq_cuda_forward(described, torch.cuda.current_stream().cuda_stream)
        if status:
            binding.check(status, f"a binary linear layer of {rows} rows and {self.in_features} inputs")

    def _need(self, x: torch.Tensor, out: torch.Tensor) -> int:
        """Bytes of scratch memory of the pass that has been described, kept by rows and types."""
        key = (x.shape[0], x.dtype, out.dtype)
        if key not in self._needs:
            need = binding.library().nq_cuda_workspace_bytes(self._pass)
            if not need:
                raise NqEdgeError("NQ-CUDA", f"no kernel takes {x.shape[0]} rows of {x.dtype} on this GPU.")
            self._needs[key] = need
        return self._needs[key]

    def _reference(self, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None) -> None:
        ready = apply_input(x, self._input, norm_weight=self.norm_weight, norm_eps=self._norm_eps)
        for layer, offset in zip(self.layers, self.offsets, strict=True):
            columns = slice(offset, offset + layer.out_features)
            result = reference_linear(layer, ready)
            out[:, columns] = result if residual is None else result + residual[:, columns].float()
