# SPDX-License-Identifier: Apache-2.0
"""The bfloat16 model to compare with: the same decoder, caches, graphs and attention kernel, cuBLAS for the linears.

q/k/v and gate/up are one product each, residuals are added by the product itself (`addmm`), norms are PyTorch's fused
ones: what remains to be compared is the linear layers.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nanoquant_edge.models import DecoderConfig
from nanoquant_edge.models.rotary import frequencies
from nanoquant_edge.runtimes.cuda.binding import Input
from nanoquant_edge.runtimes.torch import DecoderModel
from nanoquant_edge.runtimes.torch.attention import HeadNorms
from nanoquant_edge.runtimes.torch.model import DecoderLayer

__all__ = ["DenseGroup", "dense_decoder"]


class DenseGroup:
    """A `Projection` with one dense weight (width, in_features)."""

    def __init__(
        self, weight: torch.Tensor, input: Input, norm_weight: torch.Tensor | None = None, norm_eps: float = 0.0
    ) -> None:
        self.weight, self.width = weight, weight.shape[0]
        self._input, self._norm_weight, self._norm_eps = input, norm_weight, norm_eps

    def __call__(self, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None) -> None:
        """Compute into `out`; see `Projection`."""
        if self._input == Input.RMS_NORM:
            x = F.rms_norm(x, (x.shape[-1],), self._norm_weight, self._norm_eps)
        elif self._input == Input.SILU:
            gate, up = x.chunk(2, -1)
            x = F.silu(gate) * up
        if residual is None:
            torch.mm(x, self.weight.T, out=out)
        elif residual is out:
            out.addmm_(x, self.weight.T)
        else:
            torch.addmm(residual, x, self.weight.T, out=out)


def dense_decoder(config: DecoderConfig, *, head_norms: bool) -> DecoderModel:
    """A decoder of random bfloat16 weights on the current GPU."""
    device, dtype = torch.device("cuda", torch.cuda.current_device()), torch.bfloat16

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.empty((rows, columns), dtype=dtype, device=device).normal_(0.0, columns**-0.5)

    def norm(width: int) -> torch.Tensor:
        return torch.ones(width, dtype=dtype, device=device)

    shapes = config.linear_shapes()
    width, eps = config.head_dim, config.norm_eps

    def group(names: tuple[str, ...], kind: Input, weight: torch.Tensor | None = None) -> DenseGroup:
        rows = sum(shapes[name][0] for name in names)
        return DenseGroup(random(rows, shapes[names[0]][1]), kind, weight, eps)

    blocks = tuple(
        DecoderLayer(
            qkv=group(
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), Input.RMS_NORM, norm(config.hidden_size)
            ),
            output=group(("self_attn.o_proj",), Input.PLAIN),
            gate_up=group(("mlp.gate_proj", "mlp.up_proj"), Input.RMS_NORM, norm(config.hidden_size)),
            down=group(("mlp.down_proj",), Input.SILU),
            head_norms=HeadNorms(norm(width).float(), norm(width).float(), eps) if head_norms else None,
        )
        for _ in range(config.num_layers)
    )
    embedding = random(config.vocab_size, config.hidden_size)
    return DecoderModel(
        config=config,
        dtype=dtype,
        device=device,
        embedding=embedding,
        head=embedding if config.tied else random(config.vocab_size, config.hidden_size),
        final_norm=norm(config.hidden_size),
        layers=blocks,
        frequencies=torch.from_numpy(frequencies(config.rotary, config.head_dim)).to(device),
        kernel="none",
    )
